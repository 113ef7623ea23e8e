import numpy as np

from ace.drawing.outlines import PREDICTION, TRUTH, outlined, pointed

SIDE = 20


def places(picture: np.ndarray, colour: tuple[int, int, int]) -> set[tuple[int, int]]:
    return {(int(row), int(col)) for row, col in np.argwhere((picture == colour).all(-1))}


def rim(row0: int, col0: int, row1: int, col1: int) -> set[tuple[int, int]]:
    return {
        (row, col)
        for row in range(row0, row1)
        for col in range(col0, col1)
        if row in (row0, row1 - 1) or col in (col0, col1 - 1)
    }


def test_each_outline_has_its_colour_and_the_prediction_lies_on_top() -> None:
    truth, prediction = np.zeros((2, 1, SIDE, SIDE), bool)
    truth[0, 2:8, 3:9] = True
    prediction[0, 2:8, 5:11] = True
    picture = outlined(np.full((SIDE, SIDE), 90, np.uint8), truth, prediction, zoom=1)
    assert places(picture, PREDICTION) == rim(2, 5, 8, 11)
    assert places(picture, TRUTH) == rim(2, 3, 8, 9) - rim(2, 5, 8, 11)
    assert picture[4, 6].tolist() == [90, 90, 90]


def test_outlines_keep_their_places_in_a_larger_picture_of_a_colour_image() -> None:
    truth = np.zeros((1, SIDE, SIDE), bool)
    truth[0, 2:8, 3:9] = True
    picture = outlined(np.zeros((SIDE, SIDE, 3), np.uint8), truth, np.zeros_like(truth), zoom=3)
    assert picture.shape == (3 * SIDE, 3 * SIDE, 3)
    assert places(picture, TRUTH) == rim(6, 9, 24, 27)


def test_landmarks_are_circled_crosses_lie_on_predictions_and_unknown_ones_are_left_out() -> None:
    truth = np.array([[5.5, 4.5], [np.nan, np.nan]])
    prediction = np.array([[15.5, 14.5], [2.0, 18.0]])
    picture = pointed(np.zeros((SIDE, SIDE), np.uint8), truth, prediction, zoom=1)
    assert (15, 14) in places(picture, PREDICTION)
    assert {(2, 4), (8, 4), (5, 1), (5, 7)} <= places(picture, TRUTH)
    assert not picture[:4, 14:].any()
