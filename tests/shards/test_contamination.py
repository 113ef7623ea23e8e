import pytest

from shards.contamination import Origin, check_shared_images, shared_images
from shards.errors import ContaminationError

NIH = Origin("nih-chestxray14", ())
RSNA = Origin("rsna-pneumonia", ("nih-chestxray14",))
RSNA_MAPPED = Origin("rsna-pneumonia", ())
SIIM = Origin("siim-acr", ("nih-chestxray14",))
COVID = Origin("covid-qu-ex", ("nih-chestxray14", "padchest", "rsna-pneumonia"))  # RSNA's are NIH's
SHENZHEN = Origin("shenzhen", ())


@pytest.mark.parametrize(
    ("trained", "measured", "common"),
    [
        (NIH, RSNA, ("nih-chestxray14",)),
        (RSNA, NIH, ("nih-chestxray14",)),
        (RSNA, SIIM, ("nih-chestxray14",)),
        (COVID, RSNA, ("nih-chestxray14", "rsna-pneumonia")),
        (COVID, RSNA_MAPPED, ("rsna-pneumonia",)),
        (NIH, RSNA_MAPPED, None),
        (NIH, NIH, None),
        (RSNA, RSNA, None),
        (RSNA, RSNA_MAPPED, ("rsna-pneumonia",)),
        (NIH, SHENZHEN, None),
        (COVID, NIH, ("nih-chestxray14",)),
    ],
)
def test_two_datasets_share_images_where_they_have_an_origin_in_common(
    trained: Origin, measured: Origin, common: tuple[str, ...] | None
) -> None:
    assert shared_images({"a": trained}, measured) == ({"a": common} if common else {})


def test_shared_images_need_an_explicit_yes_and_the_message_says_whose_they_are() -> None:
    trained = {"nih-b000": NIH, "shenzhen-b000": SHENZHEN}
    with pytest.raises(ContaminationError) as error:
        check_shared_images(trained, "rsna-b000", RSNA, is_accepted=False)
    text = str(error.value)
    assert "evaluate.batch rsna-b000 (rsna-pneumonia)" in text
    assert "nih-b000 (nih-chestxray14, by nih-chestxray14)" in text
    assert "evaluate.accept_shared_images: true" in text
    assert "shenzhen" not in text
    assert check_shared_images(trained, "rsna-b000", RSNA, is_accepted=True) == {"nih-b000": ("nih-chestxray14",)}
    assert check_shared_images({"shenzhen-b000": SHENZHEN}, "rsna-b000", RSNA, is_accepted=False) == {}
