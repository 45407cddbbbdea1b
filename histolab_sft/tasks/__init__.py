"""Each kind of answer is one file that owns its wording: question, target, parser."""

from histolab_sft.tasks import classification

TASKS = {"classification": classification}
