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
    """Standard deviation of the bend to the front: how much further it lies 120 mm above or below the middle."""
    scoliosis_sd_mm: NotNegative
    """Standard deviation of the bend to the side: the amplitude of a sine along the height."""
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
    """Thickness of fat that the rays pass besides."""
    breast_fraction: Fraction
    """Share of patients with a breast shadow."""
    breast_mm: Range
    """Greatest thickness of a breast shadow, counted as water."""


class ExposureParams(RangesSection):
    """Settings of one radiograph, other for every image of a patient."""

    ap_fraction: Fraction
    """Share of anterior-posterior exposures; the others are posterior-anterior."""
    source_distance_pa_mm: Positive
    """Distance of the X-ray source from the detector in posterior-anterior exposures."""
    source_distance_ap_mm: Positive
    """Distance of the X-ray source from the detector in anterior-posterior exposures."""
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
    """Exponent on the grey levels of the developed image."""


class FindingParams(RangesSection):
    """Simulated findings: how many studies have one, and their sizes."""

    fraction: Fraction
    """Share of studies with a finding; the kinds are equally frequent."""
    nodule_radius_mm: Range
    """Radius of a nodule."""
    effusion_level_mm: Range
    """Height of the fluid level above the lower end of the scan."""
    pneumothorax_mm: Range
    """Thickness of the air at the apex."""
    consolidation_mm: Range
    """Size of a consolidation."""
    cardiomegaly_heart: Range
    """Relative growth of an enlarged heart."""
    min_visible: Fraction
    """A nodule or consolidation with a smaller share inside the lung field is drawn again."""


class PhantomParams(Section):
    """Section `phantom` of params.yaml."""

    num_patients: Count
    """Virtual patients that are rendered."""
    images_per_patient: Count
    """At most so many images of a patient; each patient has between one and this number."""
    size_px: Annotated[int, Field(ge=32, le=MAX_SIZE_PX)]
    """Height and width of an image."""
    num_ray_rows: Annotated[int, Field(ge=16, le=MAX_SIZE_PX)]
    """Rows of the raster on which rays are cast."""
    num_ray_cols: Annotated[int, Field(ge=16, le=MAX_SIZE_PX)]
    """Rays are cast on this raster and upsampled to `size_px`."""
    num_depth_planes: Annotated[int, Field(ge=8, le=1024)]
    """Samples along a ray."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of all patients, exposures and findings."""
    anatomy: AnatomyParams
    """Differences between patients."""
    exposure: ExposureParams
    """Differences between images of a patient."""
    findings: FindingParams
    """Simulated findings and their sizes."""
