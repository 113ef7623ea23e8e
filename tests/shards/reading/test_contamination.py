import pytest

from shards.core.errors import ContaminationError
from shards.reading.contamination import Origin, check_shared_images, shared_images

NIH = Origin("nih-chestxray14", ())
PADCHEST = Origin("padchest", ())
RSNA = Origin("rsna-pneumonia", ("nih-chestxray14", "siim-acr", "covid-qu-ex"))
RSNA_MAPPED = Origin("rsna-pneumonia", ())
SIIM = Origin("siim-acr", ("nih-chestxray14", "rsna-pneumonia", "covid-qu-ex"))
SIIM_MAPPED = Origin("siim-acr", ())
COVID = Origin("covid-qu-ex", ("nih-chestxray14", "padchest", "rsna-pneumonia"))  # RSNA's are NIH's
SHENZHEN = Origin("shenzhen", ())


@pytest.mark.parametrize(
    ("one", "other", "may_share"),
    [
        (NIH, RSNA, True),
        (RSNA, SIIM, True),
        (RSNA, SIIM_MAPPED, True),
        (COVID, RSNA, True),
        (COVID, RSNA_MAPPED, True),
        (COVID, NIH, True),
        (COVID, PADCHEST, True),
        (NIH, RSNA_MAPPED, False),
        (RSNA_MAPPED, SIIM_MAPPED, False),
        (NIH, NIH, False),
        (RSNA, RSNA, False),
        (COVID, COVID, False),
        # A patient of one is an image of the other.
        (RSNA, RSNA_MAPPED, True),
        (Origin("jsrt", ()), Origin("jsrt", ("jsrt",)), True),
        (NIH, SHENZHEN, False),
        # COVID-QU-Ex took images from both, which says nothing of these two.
        (RSNA, PADCHEST, False),
    ],
)
def test_two_datasets_share_images_where_one_names_the_other(one: Origin, other: Origin, may_share: bool) -> None:
    assert shared_images({"a": one}, other) == (("a",) if may_share else ())
    assert shared_images({"a": other}, one) == (("a",) if may_share else ())


def test_shared_images_need_an_explicit_yes_and_the_message_says_whose_they_are() -> None:
    trained = {"nih-b000": NIH, "shenzhen-b000": SHENZHEN}
    with pytest.raises(ContaminationError) as error:
        check_shared_images(trained, "rsna-b000", RSNA, is_accepted=False)
    text = str(error.value)
    assert "evaluate.batch rsna-b000 (rsna-pneumonia)" in text
    assert "the same images: nih-b000 (nih-chestxray14)." in text
    assert "evaluate.accept_shared_images: true" in text
    assert "shenzhen" not in text
    assert check_shared_images(trained, "rsna-b000", RSNA, is_accepted=True) == ("nih-b000",)
    assert check_shared_images({"shenzhen-b000": SHENZHEN}, "rsna-b000", RSNA, is_accepted=False) == ()
