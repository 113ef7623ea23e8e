"""Every number of the phantom: one typed section of params.yaml."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from shards.core.config import Section

MAX_SIZE_PX = 1024

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class RangesSection(Section):
    """A section whose pairs are ranges to draw from uniformly: the first number may not exceed the second."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
                raise ValueError(f"{name}: a range starts at its smaller end, found {value[0]} > {value[1]}")
        return self


class AnatomyParams(RangesSection):
    """Differences of one virtual patient from the scanned one, the same in all images of the patient."""

    scale_sd: tuple[NotNegative, NotNegative, NotNegative]
    """Standard deviations of the log scale: left-right, depth, height."""
    taper_sd: NotNegative
    """Standard deviation of the relative widening from the middle of the chest to its top."""
    kyphosis_sd_mm: NotNegative
    scoliosis_sd_mm: NotNegative
    diaphragm_sd_mm: NotNegative
    """Height of both domes."""
    diaphragm_side_sd_mm: NotNegative
    """Height of the left dome against the right one."""
    field_sd_mm: Range
    """Standard deviation of the smooth random displacement."""
    heart: Range
    """Relative growth of a normal heart; 0 is the scanned one."""
    bone_weight: Range
    """Weight of bone's excess attenuation: low tube voltage is high."""
    lung_density: Range
    """Factor on the attenuation of lung tissue (the breath held)."""
    fat_mm: Range
    breast_fraction: Fraction
    """Share of patients with a breast shadow."""
    breast_mm: Range


class ExposureParams(RangesSection):
    """Settings of one radiograph, other for every image of a patient."""

    ap_fraction: Fraction
    """Share of anterior-posterior exposures; the others are posterior-anterior."""
    source_distance_pa_mm: Positive
    source_distance_ap_mm: Positive
    rotation_sd_deg: tuple[NotNegative, NotNegative, NotNegative]
    """Standard deviations of pitch, roll and yaw."""
    field_of_view_mm: Range
    """Side of the image at the detector."""
    top_edge_mm: Range
    """Upper edge of the image above the top of the scan; positive shows neck that the scan does not have."""
    scatter: Range
    """Share of the blurred intensity that veils the image."""
    noise: Range
    """Standard deviation of the noise where nothing absorbs, as its share, for pixels of 0.25 mm."""
    gamma: Range


class FindingParams(RangesSection):
    """Simulated findings: how many studies have one, and their sizes."""

    fraction: Fraction
    """Share of studies with a finding; the kinds are equally frequent."""
    nodule_radius_mm: Range
    effusion_level_mm: Range
    """Height of the fluid level above the lower end of the scan."""
    pneumothorax_mm: Range
    """Thickness of the air at the apex."""
    consolidation_mm: Range
    cardiomegaly_heart: Range
    """Relative growth of an enlarged heart."""
    min_visible: Fraction
    """A nodule or consolidation with a smaller share inside the lung field is drawn again."""


class PhantomParams(Section):
    """Section `phantom` of params.yaml."""

    num_patients: Count
    images_per_patient: Count
    """At most so many images of a patient; each patient has between one and this number."""
    size_px: Annotated[int, Field(ge=32, le=MAX_SIZE_PX)]
    """Height and width of an image."""
    num_ray_rows: Annotated[int, Field(ge=16, le=MAX_SIZE_PX)]
    num_ray_cols: Annotated[int, Field(ge=16, le=MAX_SIZE_PX)]
    """Rays are cast on this raster and upsampled to `size_px`."""
    num_depth_planes: Annotated[int, Field(ge=8, le=1024)]
    """Samples along a ray."""
    seed: Annotated[int, Field(ge=0)]
    anatomy: AnatomyParams
    exposure: ExposureParams
    findings: FindingParams
