import numpy as np
import pytest

from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks import boxes
from histolab_sft.tasks.parsing.box_codecs import read_polygons

# One unit of each codec as a fraction of the side it is counted on.
UNITS = {"box_2d": 1000, "loc": 1024, "normalised": 10_000}


def random_cases(n=1000):
    """Pictures of 1:3 to 3:1 with up to five boxes each, no box thinner than 1/100 of the longer side."""
    rng = np.random.default_rng(7)
    for _ in range(n):
        short = int(rng.integers(200, 1500))
        long = int(short * rng.uniform(1, 3))
        size = (short, long) if rng.random() < 0.5 else (long, short)
        found = []
        for _ in range(rng.integers(1, 6)):
            width, height = rng.uniform(max(size) / 100, size[0]), rng.uniform(max(size) / 100, size[1])
            x, y = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
            found.append(Box(x, y, x + width, y + height, f"finding {rng.integers(3)}"))
        yield size, found


@pytest.mark.slow
@pytest.mark.parametrize("codec", boxes.CODECS)
def test_boxes_come_back_within_one_unit_of_the_codec(codec):
    for size, truth in random_cases():
        answer = boxes.parse(boxes.format_target(truth, size, codec), size, codec)
        assert (answer.dropped, answer.repaired, answer.truncated) == (0, False, False)
        side = (max(size), max(size)) if codec == "box_2d" else size
        x, y = (s / UNITS[codec] if codec in UNITS else 1 for s in side)
        # Boxes under one name stand together in the nested form.
        expected = truth if codec not in ("pixels", "normalised") else by_first_label(truth)
        assert [box.label for box in answer.boxes] == [box.label for box in expected]
        for before, after in zip(expected, answer.boxes, strict=True):
            difference = np.abs(np.subtract(before[:4], after[:4]))
            assert (difference <= np.array([x, y, x, y]) + 1e-9).all(), (size, before, after)


def by_first_label(truth):
    order = list(dict.fromkeys(box.label for box in truth))
    return sorted(truth, key=lambda box: order.index(box.label))


@pytest.mark.parametrize("codec", boxes.CODECS)
def test_an_empty_list_is_a_legal_answer_and_no_answer_is_not(codec):
    assert boxes.parse(boxes.format_target([], (300, 100), codec), (300, 100), codec).boxes == []
    assert boxes.parse("", (300, 100), codec) is None
    assert boxes.parse("There is nothing to see.", (300, 100), codec) is None


@pytest.mark.parametrize("codec", boxes.CODECS)
@pytest.mark.parametrize("thin", [Box(100, 50, 100.001, 60), Box(299.999, 0, 300, 100), Box(0, 0, 0.001, 0.001)])
def test_a_box_thinner_than_a_unit_is_not_lost(codec, thin):
    [back] = boxes.parse(boxes.format_target([thin], (300, 100), codec), (300, 100), codec).boxes
    assert np.abs(np.subtract(back[:4], thin[:4])).max() <= 2


def test_each_codec_writes_its_own_order_and_scale():
    box, size = Box(30, 10, 60, 40, "polyp"), (100, 200)
    written = {codec: boxes.format_target([box], size, codec) for codec in boxes.CODECS}
    assert written == {
        "box_2d": '```json[{"box_2d": [50, 400, 200, 550], "label": "polyp"}]```',  # 50 pixels of padding on the left
        "loc": "<loc0051><loc0307><loc0204><loc0614> polyp",
        "normalised": '{"polyp": [[0.3, 0.05, 0.6, 0.2]]}',
        "pixels": '{"polyp": [[30, 10, 60, 40]]}',
        "coco": '[{"bbox": [30, 10, 30, 30], "label": "polyp"}]',
    }


def test_bug_17_box_conventions_are_not_mixed():
    text, size = "[[10, 20, 30, 60]]", (1000, 1000)
    corners = {codec: boxes.parse(text, size, codec).boxes[0][:4] for codec in ("pixels", "coco", "box_2d")}
    assert corners == {"pixels": (10, 20, 30, 60), "coco": (10, 20, 40, 80), "box_2d": (20, 10, 60, 30)}
    assert boxes.parse('[{"box_2d": [1, 2, 3, 4], "label": "a"}]', size, "pixels") is None
    assert boxes.parse('[{"bbox": [1, 2, 3, 4], "label": "a"}]', size, "box_2d") is None


def test_flare_spellings_are_read():
    size, box = (640, 480), Box(111, 102, 289, 250)
    for text in ("[[111, 102, 289, 250]]", "[111,102,289,250]", "Answer: [111.0, 102, 289, 250]."):
        assert boxes.parse(text, size, "pixels").boxes == [box]
    two = boxes.parse("[111, 102, 289, 250]; [1, 2, 3, 4]", size, "pixels")
    assert two.boxes == [box, Box(1, 2, 3, 4)]
    nested = boxes.parse('{"2": [[655, 420, 724, 477]], "1": [[1, 2, 3, 4], [5, 6, 7, 8]]}', (800, 600), "pixels")
    assert [box.label for box in nested.boxes] == ["2", "1", "1"]


def test_decimals_and_minus_signs_keep_their_meaning():
    assert boxes.parse("[[-5, 2.5, 10.5, 8]]", (100, 100), "pixels").boxes == [Box(0, 2.5, 10.5, 8)]


def test_corners_the_wrong_way_round_are_swapped_and_empty_boxes_counted():
    answer = boxes.parse("[[30, 40, 10, 20], [5, 5, 5, 9], [1, 2, 3]]", (100, 100), "pixels")
    assert answer.boxes == [Box(10, 20, 30, 40)]
    assert answer.dropped == 2


def test_an_answer_of_nothing_but_garbled_boxes_is_unparsed_not_empty():
    for text in ("[[1, 2, 3]]", "[[0, 0, 0, 0]]", '["left lung"]', "[1e999, 0, 1, 1]", f"[{'9' * 5000}, 1, 2, 3]"):
        assert boxes.parse(text, (100, 100), "pixels") is None, text


def test_bug_18_truncated_instances_keep_their_ids_and_are_counted():
    text = '{"1": [[550,505,624,572],[619,361,690,423]], "2": [[655,420,724,477],[10,20,30,4'
    answer = boxes.parse(text, (800, 600), "pixels")
    assert answer.truncated and answer.repaired
    assert answer.boxes == [
        Box(550, 505, 624, 572, "1"),
        Box(619, 361, 690, 423, "1"),
        Box(655, 420, 724, 477, "2"),
    ]
    assert answer.dropped == 1  # the box at the cut: its last number may be half of one


@pytest.mark.parametrize("codec", boxes.CODECS)
def test_a_cut_answer_never_holds_a_box_that_was_not_written(codec):
    size = (640, 480)
    truth = [Box(111, 102, 289, 250, "a"), Box(10, 20, 300, 400, "b"), Box(5, 7, 630, 470, "b")]
    whole = boxes.format_target(truth, size, codec)
    legal = {box[:4] for box in boxes.parse(whole, size, codec).boxes}
    for end in range(len(whole)):
        answer = boxes.parse(whole[:end], size, codec)
        assert answer is None or (answer.boxes and {box[:4] for box in answer.boxes} <= legal), whole[:end]


def test_a_cut_is_told_wherever_boxes_went_missing():
    size = (640, 480)
    whole = boxes.format_target([Box(111, 102, 289, 250, "a"), Box(10, 20, 300, 400, "b")], size, "box_2d")
    for end in range(whole.index("}") + 1, whole.rindex("]")):
        assert boxes.parse(whole[:end], size, "box_2d").truncated, whole[:end]


def test_single_quotes_are_repaired():
    answer = boxes.parse("[{'box_2d': [0, 0, 500, 1000], 'label': 'left lung'}]", (100, 100))
    assert answer.boxes == [Box(0, 0, 100, 50, "left lung")]
    assert answer.repaired and not answer.truncated


def test_reasoning_before_the_final_answer_is_left_out():
    text = (
        '<unused94>thought [[9,9,9,9]]<unused95>In [1] we see. Final Answer: ```json[{"box_2d": [0, 0, 500, 1000]}]```'
    )
    assert boxes.parse(text, (100, 100)).boxes == [Box(0, 0, 100, 50)]


def test_padding_is_cut_off_the_boxes_of_box_2d():
    [box] = boxes.parse('[{"box_2d": [0, 0, 1000, 1000], "label": "all"}]', (100, 300)).boxes
    assert box == Box(0, 0, 100, 300, "all")


def test_paligemma_boxes_have_y_first_and_the_last_bin_is_1023():
    answer = boxes.parse("<loc0312><loc0120><loc0540><loc0410> opacity", (1024, 1024), "loc")
    assert answer.boxes == [Box(120, 312, 410, 540, "opacity")]
    assert boxes.format_target([Box(0, 0, 64, 64)], (64, 64), "loc") == "<loc0000><loc0000><loc1023><loc1023>"


def test_a_label_that_would_end_a_loc_box_is_refused():
    with pytest.raises(ValueError, match="use box_2d"):
        boxes.format_target([Box(0, 0, 1, 1, "a; b")], (10, 10), "loc")


def test_some_boxes_with_and_some_without_a_label_are_refused_in_the_nested_form():
    with pytest.raises(ValueError, match="expected one for each box or for none"):
        boxes.format_target([Box(0, 0, 1, 1, "a"), Box(0, 0, 1, 1)], (10, 10), "pixels")


def test_a_polygon_becomes_the_box_around_all_its_points():
    text = "2 0.1 0.2 0.5 0.1 0.9 0.4 0.6 0.8 0.3 0.7\n\n0 0 0 0 1 1 0"
    assert read_polygons(text, (100, 200)) == [Box(10, 20, 90, 160, "2"), Box(0, 0, 100, 200, "0")]
    assert read_polygons("", (100, 200)) == []


def test_polygons_of_random_boxes_come_back():
    for size, truth in random_cases():
        lines = [
            " ".join(["1", *(f"{x / size[0]:.6f} {y / size[1]:.6f}" for x in box[0:3:2] for y in box[1:4:2])])
            for box in truth
        ]
        back = read_polygons("\n".join(lines), size)
        assert np.allclose([box[:4] for box in back], [box[:4] for box in truth], atol=max(size) * 1e-6)


def test_a_line_of_a_yolo_box_file_is_refused_with_its_number():
    with pytest.raises(ValueError, match="line 2.*segmentation file"):
        read_polygons("0 0 0 1 0 1 1\n0 0.5 0.5 0.2 0.2", (10, 10))


def test_the_prompt_of_pixel_codecs_tells_the_size_of_the_picture():
    assert "640 wide and 480 high" in boxes.format_prompt("Where is it?", "pixels", (640, 480))
    with pytest.raises(ValueError, match="expected \\(width, height\\)"):
        boxes.format_prompt("Where is it?", "coco")


def test_the_instruction_can_be_replaced():
    assert boxes.format_prompt(instruction="") == "Locate abnormalities."
    assert boxes.format_prompt("¿Dónde?", instruction="Responde con cajas.") == "Responde con cajas.\n\n¿Dónde?"
    official = boxes.format_prompt("left lung", instruction=boxes.OFFICIAL_PROMPT)
    assert "Where is the left lung? Don't" in official and "{object}" not in official
