"""The tokenizer and the processor of the tiny base model: Gemma's classes and turn format, a vocabulary of 960.

Gemma's 262,144 tokens would make the embedding of a 1-million-parameter model thirty times larger than the rest, so
this vocabulary is trained here, on the word list below, when the model is built. It splits text as Gemma's does: byte
pairs that never cross a space, punctuation on its own, bytes for whatever is unknown. The answer sentence is therefore
several tokens long and a class name is one to four of them.
"""

import json
from importlib.resources import files

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma3ImageProcessorPil, Gemma3Processor, GemmaTokenizer

VOCAB_SIZE = 960

# Ids are positions: pad, eos and bos stand where Gemma has them.
SPECIAL_TOKENS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]

# Words of the prompts, the answers and the pretext first (they earn whole tokens), then general English, so that the
# vocabulary is not fitted to one sentence.
FREQUENT_WORDS = """
The answer is : . , ; ? ! ( ) [ ] { } - / & % ' " = + _ # * 0 1 2 3 4 5 6 7 8 9 user model system
Classify this histopathology image. The possible tissue types are: What type of tissue is shown? Answer with only the
tissue type name. This is an H&E stained colorectal tissue patch at 20x magnification. Classify the tissue type.
Options: This is an H&E stained lymph node tissue section. Does this patch contain metastatic tumor tissue? Answer with
only Normal or Tumor. This is an H&E stained breast tissue biopsy at high magnification. Classify the tissue as one of
Answer with only the classification. Look at the picture and choose one word. Repeat the word
How many nuclei are there? How large are the nuclei? What shape do the nuclei have? How are the nuclei arranged?
What fibres are there? What holes are there? How dark are the nuclei? How even is the ground?
none few some many small medium large round oval spindle scattered clustered rings streams fine coarse straight wavy
pale dark smooth granular open full yes no one two three pink purple blue white empty lumen
glands ducts fat mucin debris
"""
CLASS_WORDS = """
Adipose Background Debris Lymphocyte Mucus Muscle Normal Stroma Tumor Benign InSitu Invasive In Situ Carcinoma
"""
GENERAL_WORDS = """
about above across after again against all along also although always among and another any appear area around as
because become been before begin below between body both bottom bright brown but by call can cancer case cell cells
centre certain change clear close colour common compare complete contain could count course cut cytoplasm day deep
describe did differ different does done down draw each early edge either end enough epithelium even ever every example
except expected eye face far feature field find first follow for form found four free from full general give given
glandular gland go good grade great green grey group grow had half hand has have head health help here high him his
hold however human idea if import important in increase inflammatory inside into invasion it its just keep kind know
known last later layer lead least left less let level life light like line list little live long lot low lymphocytes
made main make malignant man margin mark may mean measure medical membrane metastasis method microscope middle might
mild mitosis mixed moderate more most mucosa much must name near necrosis need negative neoplasm never new next nodule
normal not note now nuclear nucleus number observe of off often old on open order organ other our out outside over own
page part pathologist patient pattern per place plan point poor positive possible present pressure probable process
prove put question read reason red region remain report result right room same sample say scale scan score second
see seem set seven several shadow should show side sign similar since single site size slide so space specimen stage
stain staining start state still stop strong structure study such suggest support surface sure surround take tell ten
test than that their them then there these they thick thin thing think those through time tissue to together too top
toward try turn under until up upon use usual value very vessel view wall was water way well were what when where which
while who whole why wide will within without work would write year yellow you your
Explain Find Describe Give State Report Images Picture Section Colon Breast Lymph Node High Low Grade Score Positive
Negative Benign Malignant Explanation Finding Impression Diagnosis Patient Slide Region Question Options Yes No None
"""


def train_tokenizer() -> GemmaTokenizer:
    """Train the byte-pair vocabulary on the word lists and wrap it as a `GemmaTokenizer`.

    Returns:
        A fast tokenizer of `VOCAB_SIZE` tokens that encodes any text without `<unk>`; the same one every time.
    """
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    # Gemma's merges never cross a space or tie punctuation to a word; cutting here keeps such pairs out of the merges.
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[A-Za-z]+|\n+|▁?[0-9]|▁?[^A-Za-z0-9▁\n]|▁+"), "isolated")
    printable = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS + BYTE_TOKENS,
        initial_alphabet=["▁", "\n", *printable],
        show_progress=False,
    )
    # A leading space gives the form that a word has inside a sentence; without it, the form at the start of a turn.
    frequent, classes, general = FREQUENT_WORDS.split(), CLASS_WORDS.split(), GENERAL_WORDS.split()
    corpus = ["\n\n", "\n\n\n", "user", "model"] * 30 + frequent * 2
    corpus += [" " + word for word in frequent * 8 + classes * 3 + general * 3]
    bpe.train_from_iterator(corpus, trainer)

    trained = json.loads(bpe.to_str())["model"]
    return GemmaTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )


def build_processor(image_size: int, image_tokens: int) -> Gemma3Processor:
    """Give Gemma 3's processor at the tiny size.

    Args:
        image_size: side in pixels that every picture is resized to (bilinear), then scaled to -1..1.
        image_tokens: soft tokens per picture, `mm_tokens_per_image` of the model.

    Returns:
        A processor with Gemma 3's chat template, which writes the one `<bos>` itself.
    """
    image_processor = Gemma3ImageProcessorPil(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    chat_template = files("trl").joinpath("chat_templates", "gemma3.jinja").read_text(encoding="utf-8")
    return Gemma3Processor(
        image_processor=image_processor,
        tokenizer=train_tokenizer(),
        chat_template=chat_template,
        image_seq_length=image_tokens,
    )
