"""Images show what they are said to show, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datalake.sample import Objects
from student.detections import CLASS_NAMES, Detections
from student.report.colors import CLASS_COLORS, INVALID, rgb
from student.report.images import (
    ImageArray,
    beside,
    colors_of_classes,
    colors_of_features,
    draw_detections,
    draw_points,
)

GRAY = torch.full((3, 80, 120), 90, dtype=torch.uint8)
WHITE = (255, 255, 255)


def found(*boxes: tuple[float, ...], classes: tuple[int, ...], scores: tuple[float, ...]) -> Detections:
    depth_m = torch.arange(20.0, 20.0 + len(boxes))
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(classes), torch.tensor(scores), depth_m)


def objects(*boxes: tuple[float, ...], depth_m: tuple[float, ...]) -> Objects:
    return Objects(torch.tensor(boxes), torch.ones(len(boxes), dtype=torch.int64), torch.tensor(depth_m))


def border(image: ImageArray, box: tuple[int, int, int, int]) -> ImageArray:
    """The outermost pixels of a box, its upper edge aside: a label may stand there."""
    x0, y0, x1, y1 = box
    return np.concatenate((image[y1 - 1, x0:x1], image[y0:y1, x0], image[y0:y1, x1 - 1]))


def has(image: ImageArray, color: tuple[int, ...]) -> bool:
    return bool((image == color).all(-1).any())


@pytest.mark.parametrize("number", range(1, len(CLASS_NAMES)))
def test_a_detection_has_its_classs_color_along_its_border(number: int) -> None:
    image = draw_detections(GRAY, found((30, 30, 60, 50), classes=(number,), scores=(0.9,)), None, scale=3)
    assert image.shape == (240, 360, 3)
    assert image.dtype == np.uint8
    color = rgb(CLASS_COLORS[CLASS_NAMES[number]])
    assert (border(image, (90, 90, 180, 150)) == color).all()
    assert (image[100:140, 100:170] == 90).all(), "the inside is covered"


def test_every_class_has_a_color_of_its_own() -> None:
    assert len({CLASS_COLORS[name] for name in CLASS_NAMES}) == len(CLASS_NAMES)


def test_a_detection_below_the_least_score_is_left_out() -> None:
    unsure = found((30, 30, 60, 50), classes=(1,), scores=(0.3,))
    assert (draw_detections(GRAY, unsure, None) == 90).all()
    assert has(draw_detections(GRAY, unsure, None, min_score=0.2), rgb(CLASS_COLORS["VEHICLE"]))


def test_where_boxes_cross_the_more_confident_is_on_top() -> None:
    both = found((20, 20, 60, 60), (40, 20, 80, 60), classes=(1, 2), scores=(0.9, 0.6))
    image = draw_detections(GRAY, both, None, scale=3)
    assert tuple(image[179, 150]) == rgb(CLASS_COLORS["VEHICLE"])


def test_a_labelled_object_is_dashed_and_white() -> None:
    image = draw_detections(
        GRAY, found(classes=(), scores=()), objects((30, 30, 60, 50), depth_m=(torch.nan,)), scale=3
    )
    edge = border(image, (90, 90, 180, 150))
    white = (edge == WHITE).all(-1)
    assert 0.3 < white.mean() < 0.8
    assert (edge[~white] == 90).all(), "between the dashes the image shows"


def test_the_distance_of_an_object_is_written_only_where_it_is_known() -> None:
    nothing = found(classes=(), scores=())
    known, unknown = (
        draw_detections(GRAY, nothing, objects((30, 30, 60, 50), depth_m=(depth_m,))) for depth_m in (31.0, torch.nan)
    )
    outside = np.ones(known.shape[:2], bool)
    outside[90:150, 90:180] = False
    assert (unknown[outside] == 90).all()
    assert has(known[outside], WHITE)


def test_a_wide_box_tells_more_than_a_narrow_one() -> None:
    def plate(width: float) -> int:
        one = found((5, 40, 5 + width, 70), classes=(1,), scores=(0.93,))
        above = draw_detections(GRAY, one, None, scale=3)[:120]
        return int((above != 90).any(-1).any(0).sum())

    assert plate(10) < 60 < 100 < plate(60)


def test_labels_of_boxes_in_one_place_do_not_overlap() -> None:
    boxes = [(50.0, 30.0 + i, 58.0, 50.0 + i) for i in range(12)]
    scores = tuple(0.9 - 0.01 * i for i in range(12))
    color = rgb(CLASS_COLORS["VEHICLE"])
    image = draw_detections(GRAY, found(*boxes, classes=(1,) * 12, scores=scores), None, scale=3)
    alone = draw_detections(GRAY, found(boxes[0], classes=(1,), scores=(0.9,)), None, scale=3)
    # The most confident detection's label is written as if it were alone, whatever the others want.
    plate = (alone[:90] == color).all(-1)
    rows, columns = np.flatnonzero(plate.any(1)), np.flatnonzero(plate.any(0))
    area = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert len(rows) > 10
    assert (image[area] == alone[area]).all()


def test_a_box_beyond_the_image_is_cut_at_its_edge() -> None:
    image = draw_detections(GRAY, found((-20, -10, 400, 300), classes=(2,), scores=(0.4,)), None, min_score=0.1)
    assert (border(image, (0, 0, 360, 240)) == rgb(CLASS_COLORS["PEDESTRIAN"])).all()


def test_an_image_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected an image uint8 \[3, H, W\]"):
        draw_detections(GRAY.float(), found(classes=(), scores=()), None)


def test_points_stand_where_they_are_and_differ_with_their_distance() -> None:
    uv = torch.tensor([[30.5, 60.5, 90.5], [60.5, 60.5, 60.5]])
    image = draw_points(GRAY, uv, torch.tensor([4.0, 20.0, 70.0]), scale=3)
    near, middle, far = (image[181, column].astype(int) for column in (91, 181, 271))
    assert near[0] > near[2], "near is warm"
    assert far[2] > far[0], "far is cold"
    assert abs(middle - near).sum() > 100
    assert abs(middle - far).sum() > 100
    assert (image[150, :] == image[150, 0]).all(), "the image between the points is plain"
    assert image[150, 0, 0] < 90, "and darker than it was"


def test_the_nearer_of_two_points_hides_the_farther() -> None:
    uv = torch.tensor([[60.5, 60.5], [60.5, 60.5]])
    first, second = (draw_points(GRAY, uv, torch.tensor(depths)) for depths in ([4.0, 60.0], [60.0, 4.0]))
    assert (first == second).all()
    assert first[181, 181, 0] > first[181, 181, 2]


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(16, 6, 9, generator=torch.Generator().manual_seed(seed))


EVERYWHERE = torch.ones(1, 6, 9, dtype=torch.bool)


def test_equal_features_have_equal_colors() -> None:
    teacher, student = colors_of_features(features(), EVERYWHERE, features(), scale=8)
    assert teacher.shape == student.shape == (48, 72, 3)
    assert (teacher == student).all()
    assert (teacher[:8, :8] == teacher[0, 0]).all(), "a cell is one color"


def test_the_students_colors_are_the_teachers_scale_not_its_own() -> None:
    teacher, student = colors_of_features(features(), EVERYWHERE, 0.1 * features(), scale=1)
    assert student.std() < 0.3 * teacher.std()


def test_what_is_far_off_looks_far_off() -> None:
    teacher, near = colors_of_features(features(), EVERYWHERE, features() + 0.1 * features(1), scale=1)
    _, far = colors_of_features(features(), EVERYWHERE, features(2), scale=1)
    errors = [np.abs(student.astype(int) - teacher).mean() for student in (near, far)]
    assert 4 * errors[0] < errors[1]


def test_cells_without_an_answer_are_gray_and_have_no_say_in_the_colors() -> None:
    valid = EVERYWHERE.clone()
    valid[:, :3] = False
    wild = features()
    wild[:, :3] *= 1000
    teacher, student = colors_of_features(features(), valid, features(), scale=1)
    with_wild, _ = colors_of_features(wild, valid, features(), scale=1)
    assert (teacher[:3] == rgb(INVALID)).all()
    assert (teacher == with_wild).all()
    assert (teacher[3:] == student[3:]).all()


def test_the_student_is_dimmed_where_the_teacher_is_silent() -> None:
    valid = EVERYWHERE.clone()
    valid[:, :3] = False
    # The silent rows hold the same features as the others.
    same = torch.cat((features()[:, 3:], features()[:, 3:]), dim=1)
    _, student = colors_of_features(same, valid, same, scale=1)
    assert student[:3].max() < 0.4 * 255
    assert (student[:3] <= student[3:]).all()


def test_a_teacher_without_any_answer_is_all_gray() -> None:
    teacher, student = colors_of_features(features(), ~EVERYWHERE, features(), scale=1)
    assert (teacher == rgb(INVALID)).all()
    assert (student == rgb(INVALID)).all()


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_than_colors_will_do(channels: int) -> None:
    few = features()[:channels]
    teacher, student = colors_of_features(few, EVERYWHERE, few, scale=1)
    assert (teacher == student).all()
    assert [len(np.unique(teacher[..., i])) > 10 for i in range(3)] == [i < channels for i in range(3)]


def test_features_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got: \[16, 6, 9\], \[16, 3, 9\]"):
        colors_of_features(features(), EVERYWHERE, features()[:, :3])


def test_classes_have_the_colors_of_their_detections() -> None:
    classes = torch.tensor([[0, 1], [2, 3]])
    valid = torch.tensor([[[True, True], [True, False]]])
    image = colors_of_classes(classes, valid, scale=4)
    assert image.shape == (8, 8, 3)
    cells = [tuple(image[y, x].tolist()) for y in (1, 5) for x in (1, 5)]
    assert cells == [(0, 0, 0), rgb(CLASS_COLORS["VEHICLE"]), rgb(CLASS_COLORS["PEDESTRIAN"]), rgb(INVALID)]


def test_classes_are_colored_by_name_not_by_number() -> None:
    three = torch.tensor([[3]])
    seen = torch.ones(1, 1, dtype=torch.bool)
    assert tuple(colors_of_classes(three, seen)[0, 0]) == rgb(CLASS_COLORS["CYCLIST"])
    assert tuple(colors_of_classes(three, seen, class_names=CLASS_NAMES)[0, 0]) == rgb(CLASS_COLORS["SIGN"])


def test_a_class_beyond_the_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected classes within 0 … 3, got: 7 … 7"):
        colors_of_classes(torch.tensor([[7]]), torch.ones(1, 1, dtype=torch.bool))


def filled(height: int, width: int, value: int) -> ImageArray:
    return np.full((height, width, 3), value, np.uint8)


def test_panels_are_equally_tall_and_titled() -> None:
    board = beside([("left", filled(100, 150, 200)), ("right", filled(50, 75, 100))])
    for value in (200, 100):
        mask = (board == value).all(-1)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.sum(0) > 50)
        assert len(rows) >= 100
        assert len(columns) == 150
    top = np.flatnonzero((board == 200).all(-1).sum(1) > 100)[0]
    left, right = board[:top, :150], board[:top, -150:]
    assert left.max() > 200, "a title in bright letters"
    assert right.max() > 200
    assert not (left == right).all(), "and they differ"


def test_a_cell_stays_sharp_when_its_panel_grows() -> None:
    cells = np.zeros((2, 2, 3), np.uint8)
    cells[0, 0] = cells[1, 1] = (255, 0, 0)
    board = beside([("photograph", filled(100, 150, 200)), ("cells", cells)])
    area = board[-108:-8, -108:-8]
    assert {tuple(pixel) for pixel in area.reshape(-1, 3).tolist()} == {(0, 0, 0), (255, 0, 0)}


def test_panels_wrap_into_rows() -> None:
    panels = [(str(i), filled(60, 90, 50 + i)) for i in range(3)]
    row, wrapped = beside(panels), beside(panels, columns=2)
    assert wrapped.shape[1] < row.shape[1]
    assert wrapped.shape[0] > 2 * 60
    assert all((wrapped == 50 + i).all(-1).sum() >= 60 * 90 for i in range(3))


def test_the_legend_shows_the_colors_of_the_classes() -> None:
    panels = [("", filled(60, 400, 0))]
    assert has(beside(panels, legend=("VEHICLE", "SIGN")), rgb(CLASS_COLORS["SIGN"]))
    assert not has(beside(panels), rgb(CLASS_COLORS["SIGN"]))


def test_a_title_too_long_for_its_panel_stays_within_it() -> None:
    board = beside([("a title that is far too long for it", filled(60, 90, 50)), ("", filled(60, 90, 50))])
    assert board[:20, :98].max() > 200
    assert board[:20, 100:].max() < 60


def test_no_panels_are_refused() -> None:
    with pytest.raises(ValueError, match="one image or more"):
        beside([])
