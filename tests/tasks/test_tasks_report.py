import pytest

from histolab_sft.metrics.multilabel import compute_multilabel
from histolab_sft.tasks import report

SEVERAL = """FINDINGS:
- Cardiomegaly (cardiac)
- Pleural effusion (left, costophrenic angle, basal)

LOCATIONS:
cardiac, left, costophrenic angle, basal

IMPRESSION:
Multiple findings: Cardiomegaly, Pleural effusion. Clinical correlation and follow-up recommended."""
NORMAL = """FINDINGS:
- No significant abnormalities detected

LOCATIONS:
Not specified

IMPRESSION:
Normal chest X-ray. No acute cardiopulmonary disease."""


def test_the_template_is_that_of_the_published_reports():
    findings = [("cardiomegaly", ["cardiac"]), ("pleural effusion", ["left", "costophrenic angle", "basal"])]
    assert report.format_sections(findings) == SEVERAL
    assert report.format_sections([("normal", [])]) == NORMAL
    one = report.format_sections([("normal", []), ("nodule", ["left", "apical", "hilar", "basal"])])
    assert "- Nodule (left, apical, hilar)\n" in one and "left, apical, hilar, basal" in one
    assert one.endswith("Nodule identified. Clinical correlation recommended.")


def test_the_impression_names_the_first_four_findings():
    text = report.format_sections([(name, []) for name in "abcde"])
    assert "Multiple findings: A, B, C, D. Clinical" in text


def test_a_written_report_is_read_back():
    assert report.parse_sections(SEVERAL) == report.Report(
        ["cardiomegaly", "pleural effusion"],
        ["cardiac", "left", "costophrenic angle", "basal"],
        "Multiple findings: Cardiomegaly, Pleural effusion. Clinical correlation and follow-up recommended.",
    )
    assert report.parse_sections(NORMAL).findings == ["normal"]
    assert report.parse_sections(NORMAL).locations == []


def test_headings_in_other_dress_are_read():
    text = "Here it is.\n**FINDINGS:**\n* Enlarged heart (mild)\n\n## Impression:\nBig heart."
    assert report.parse_sections(text) == report.Report(["cardiomegaly"], [], "Big heart.")


@pytest.mark.parametrize(
    "text",
    ["", "The lungs are clear.", "FINDINGS:\n", "FINDINGS: none of note\nIMPRESSION:\n- ok", "IMPRESSION:\n- Normal"]
    + ["FINDINGS:\n- (left)", "<unused94>" + NORMAL],
)
def test_bug_15_an_unparsable_report_is_unparsed_not_normal(text):
    assert report.parse_sections(text) is None


def test_an_unparsable_report_never_scores_as_a_right_normal():
    read = report.parse_sections("Lorem ipsum.")
    scores = compute_multilabel([["normal"]], [read.findings if read else None])
    assert (scores["exact_match"], scores["micro_f1"], scores["unparsed_rate"]) == (0, 0, 1)


def test_bug_16_findings_match_as_whole_phrases():
    assert report.match_finding("Fluid in pleural-space.") == "pleural effusion"
    assert report.match_finding("abnormal") == "abnormal"
    assert report.match_finding("Consolidation") == "consolidation"
    assert report.match_finding("no pneumothorax") == "no pneumothorax"
    assert report.match_finding("Big heart", {"cardiomegaly": ("big heart",)}) == "cardiomegaly"


def test_normal_beside_a_finding_is_no_normal_picture():
    read = report.parse_sections("FINDINGS:\n- No acute findings\n- Nodule\n- nodule")
    assert read.findings == ["nodule"]


def test_sentences_of_padchest_are_read():
    items = [" metal", "abnormal foreign body ", "loc shoulder", " loc  basal bilateral", "exclude", "nan"]
    assert report.read_sentence(items) == [
        ("metal", []),
        ("abnormal foreign body", ["shoulder", "basal bilateral"]),
    ]
    assert report.read_sentence(["loc left"]) == []


@pytest.mark.parametrize(
    ("labels", "findings"),
    [
        (["pleural effusion", "cardiomegaly", "pleural effusion "], ["pleural effusion", "cardiomegaly"]),
        (["normal "], ["normal"]),
        (["normal", "nodule", " loc basal"], ["nodule"]),
        (["unchanged"], None),
        (["unchanged", "normal"], None),
        (["normal", "exclude"], None),
        (["nodule", "exclude"], None),
        ([""], None),
        (["unchanged", "nodule"], ["nodule"]),
    ],
)
def test_a_picture_is_normal_only_if_nothing_else_is_said(labels, findings):
    assert report.image_findings(labels) == findings


def test_a_report_of_nothing_known_is_refused():
    with pytest.raises(ValueError, match="leave the row out"):
        report.format_sections([("unchanged", [])])


def test_captions_pass_through_in_any_language():
    assert report.parse("  Radiografía normal.<end_of_turn>\n") == "Radiografía normal."
    assert report.parse(report.format_target("X-ray showing\nhealthy lungs. ")) == "X-ray showing\nhealthy lungs."
    assert report.parse(" . ") is None
    with pytest.raises(ValueError, match="expected words"):
        report.format_target(" - ")


def test_the_prompt_takes_its_values_or_another_language():
    assert "(projection: PA)" in report.format_prompt("sectioned", projection="PA")
    assert report.format_prompt("report", instruction="Describe en español.") == "Describe en español."
    assert report.format_prompt(instruction="{question} Be brief.", question="Why {so}?") == "Why {so}? Be brief."
    with pytest.raises(ValueError, match="expected \\['projection'\\]"):
        report.format_prompt("sectioned")
    with pytest.raises(ValueError, match="values for \\['projection'\\]"):
        report.format_prompt("caption", projection="PA")
