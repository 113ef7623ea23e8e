"""The section `operations` of params.yaml: what the service does by itself, and its bounds."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from ace.gate.params import GateParams
from shards.core.config import Section, read_params
from shards.core.modality import OWN_KINDS
from shards.core.params import MODALITY, SITE, Fraction, SourceKind

Difference = Annotated[float, Field(ge=0, le=1)]
CRON = r"^\S+( \S+){4}$"
"""Minute, hour, day of the month, month and day of the week."""
PREFIX = r"s3://[a-z0-9][a-z0-9.-]+(/(?!\.\.?(/|$))[^/?#\\\s]+)*"
"""A bucket and a prefix in it, without a slash at the end."""
ADDRESS = r"^[^@\s,<>]+@[^@\s,<>]+$"


class JudgeParams(Section):
    """Bounds beyond which a delivery is refused (section `operations.deliveries.judge`); docs/log.md has figures."""

    min_images: int = Field(default=1, ge=1)
    """Images that are left to train and measure on, at least."""
    max_quarantined: Fraction = 0.03
    """Share of the images that cannot be read or are kept out by the quality pass, not counting copies."""
    max_copies: Fraction = 0.5
    """Share of the delivered images that earlier batches have; 1 where every export repeats the earlier ones."""
    max_near_copies: Fraction = 0.05
    """Share of the images that show the same picture as one of an earlier batch, stored again."""
    max_view_drift: Difference = 0.6
    """Half the sum of the differences between the shares of the views here and in the accepted batches: 0 is the same
    shares, 1 is no view in common."""
    max_mean_drift: Difference = 0.1
    """Difference between the mean grey of the foreground, of pixels in [0, 1], here and in the accepted batches."""
    max_std_drift: Difference = 0.06
    """Difference between the standard deviation of the foreground's grey here and in the accepted batches."""
    min_likeness: float = Field(default=0.75, ge=-1, le=1)
    """Correlation of the mean picture with that of the accepted batches."""
    max_measured_patients: int = Field(default=0, ge=0)
    """Patients whom the evaluation measures and whom the delivery would train on."""
    min_images_of_drift: int = Field(default=24, ge=1)
    """Images that tell a drift of view, mean, standard deviation and mean picture; fewer tell nothing and pass."""


class CardParams(Section):
    """CardParams hold what only the owner of a model can state on its card (section `operations.card`)."""

    name: str = "ACE encoder"
    """Name of the model."""
    developer: str | None = None
    """The person or institution that is responsible for the model."""
    contact: str | None = None
    """The address to which users of the model send questions."""
    release_stage: str | None = None
    """The stage of release, as `research`; None is shown as not stated, like every field here."""
    availability: str | None = None
    """The countries or institutions in which the model may be used."""
    intended_use: str | None = None
    """The purpose of the model, and the step of the clinical or research work at which it is used."""
    users: str | None = None
    """The people who are meant to use the model."""
    population: str | None = None
    """Patients for whom it is meant."""
    out_of_scope: str | None = None
    """The uses that the owner warns against."""
    biases: str | None = None
    """Known biases and ethical considerations."""
    risk_level: str | None = None
    """Level of clinical risk."""
    bias_mitigation: str | None = None
    """What was done against biases."""
    maintenance: str | None = None
    """How it is watched and maintained."""
    funding: str | None = None
    """The source of the money that paid for the model."""
    stakeholders: str | None = None
    """The people who were consulted while the model was developed."""


class DeliveriesParams(Section):
    """The way of new images to an accepted batch (section `operations.deliveries`); see docs/operations.md."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """First part of the batches' names: `clinic` makes clinic-b000, clinic-b001 and so on."""
    folder: str = "."
    """Folder that holds incoming/, deliveries/ and quarantine/, all on one file system; absolute, or relative to the
    project."""
    incoming: str | None = None
    """Prefix on S3, as `s3://bucket/prefix`, whose sub-prefixes are deliveries too; None: folders of incoming/ alone.
    Credentials are the environment's, a profile's or the machine's, and never stand here."""
    max_objects: int = Field(default=1_000_000, ge=1)
    """Objects of a delivery on S3, at most; one with more is refused."""
    max_gb: float = Field(default=1000.0, gt=0)
    """Size of a delivery on S3 in GB, at most; a larger one is refused."""
    settle_s: float = Field(default=600, ge=600)
    """Seconds for which a delivery without the marker `_COMPLETE` must stay as it is before it counts as complete."""
    source: SourceKind = "folder"
    """Kind of the source that reads every delivery (`python -m shards sources`)."""
    labels: str | None = None
    """Name of the CSV in every delivery, for `folder` and `dicom`."""
    patient_from: str | None = None
    """Regular expression that finds the patient in a path, for `folder` and `dicom`."""
    site: str | None = Field(default=None, pattern=SITE)
    """Site that gave the patients their ids, for `folder` and `dicom`; None: the name."""
    modality: str | None = Field(default=None, pattern=MODALITY)
    """Kind of pictures, as `chest`, for `folder` and `dicom`; None: that of earlier batches of the site."""
    legal_basis: str | None = Field(default=None, min_length=1, max_length=200)
    """What allows these images to be used, as `research consent, form 3`; the event log and a model's lineage have it.
    It goes where git goes, so it names no patient."""
    weight: float = Field(default=1.0, gt=0)
    """Share in training of an accepted batch: 1 shows each image once per epoch."""
    judge: JudgeParams = JudgeParams()
    """Bounds beyond which a delivery is refused."""

    @field_validator("incoming", mode="before")
    @classmethod
    def _is_a_prefix_alone(cls, value: object) -> object:
        # What is refused may hold a password, so no message shows it.
        if value is not None and not re.fullmatch(PREFIX, str(value)):
            raise ValueError("found something else than a prefix; expected s3://bucket/prefix, without credentials")
        return value

    @property
    def numbered(self) -> re.Pattern[str]:
        """The pattern of the batches' names; its group is their number."""
        return re.compile(re.escape(self.name) + r"-b(\d+)")

    @model_validator(mode="after")
    def _options_belong_to_own_images(self) -> Self:
        given = [name for name in ("labels", "patient_from", "site", "modality") if getattr(self, name) is not None]
        if given and self.source not in OWN_KINDS:
            raise ValueError(f"{given[0]} belongs to source {' or '.join(OWN_KINDS)}; {self.source} brings its own")
        return self


class ScheduleParams(Section):
    """When Dagster asks whether a retraining is due (section `operations.schedule`)."""

    cron: str = Field(pattern=CRON)
    """Minute, hour, day of the month, month and day of the week: `0 2 * * 6` is each Saturday at 2."""
    timezone: str = "UTC"
    """Time zone of these hours, as `Europe/Berlin`."""
    max_age_days: float | None = Field(default=None, gt=0)
    """Age of models/ace from which Dagster shows it as too old; None: no age is."""

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, OSError, ValueError):
            raise ValueError(f"found '{value}'; expected the name of a time zone, as Europe/Berlin") from None
        return value


class RetrainingParams(Section):
    """When the model is trained again, and from what (section `operations.retraining`)."""

    min_new_images: int = Field(default=500, ge=1)
    """Training images of accepted batches that the accepted model has not seen, from which on a retraining is due."""
    start: Literal["incumbent", "scratch"] = "scratch"
    """`incumbent` starts with the weights of the accepted model, `scratch` with those that `pretrain` names."""


class MailParams(Section):
    """The mail server that carries alerts (section `operations.alerts.mail`)."""

    host: str = Field(min_length=1)
    """Name of the server."""
    port: int = Field(default=587, ge=1, le=65535)
    """Its port: 587 with `starttls`, 465 with `tls`, 25 with `none`."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection is encrypted; `none` only for a server on this machine."""
    user: str | None = None
    """Who logs in; the password is the environment variable ACE_SMTP_PASSWORD. None: nobody does."""
    sender: str = Field(pattern=ADDRESS)
    """Address that the mails come from."""
    to: tuple[Annotated[str, Field(pattern=ADDRESS)], ...] = Field(min_length=1)
    """Addresses that they go to."""


class AlertsParams(Section):
    """Who is told what went wrong (section `operations.alerts`); a webhook is the variable ACE_ALERT_WEBHOOK."""

    mail: MailParams | None = None
    """The way by mail; None: no mail is sent."""
    audit: str | None = Field(default=None, pattern=CRON)
    """When the event log, the tags and all bytes that they name are checked, in UTC: `0 5 * * *`; None: never."""


class RetentionParams(Section):
    """Says for how long `python -m ace ops clean` keeps things (section `operations.retention`)."""

    logs_months: int = 6
    """Months for which logs of builds and Dagster's runs are kept; the law asks for 6 at least. The event log, and the
    record of each delivery, are never cut."""
    models_years: int = 10
    """Years for which all that the commit of a version records is kept, counted from the day on which the version was
    the accepted one for the last time; the law asks for 10 at least. Its model, card, lineage and report are kept after
    that too."""
    scratch_days: int = Field(default=30, ge=1)
    """Days for which unfinished work is kept that nobody goes on with."""
    quarantine_days: int | None = Field(default=None, ge=1)
    """Days for which the images of a refused delivery are kept; None: for good. Its report and record stay."""

    @field_validator("logs_months")
    @classmethod
    def _keeps_logs(cls, value: int) -> int:
        return _at_least(value, 6, "the EU AI Act wants logs kept for six months at least (Articles 19 and 26)")

    @field_validator("models_years")
    @classmethod
    def _keeps_models(cls, value: int) -> int:
        return _at_least(value, 10, "the EU AI Act wants a model's documents kept for ten years (Article 18)")


def _at_least(value: int, least: int, why: str) -> int:
    if value < least:
        raise ValueError(f"found {value}; expected {least} or more: {why}")
    return value


class OperationsParams(Section):
    """OperationsParams say what the service does by itself (section `operations`, which may be absent)."""

    owners: tuple[str, ...] = ()
    """The owners that Dagster shows on every asset: e-mail addresses, or teams as `team:imaging`."""
    card: CardParams = CardParams()
    """What a model card says that only its owner knows."""
    deliveries: DeliveriesParams | None = None
    """The way of new images to an accepted batch; None: nothing is taken in."""
    schedule: ScheduleParams | None = None
    """When a retraining may begin by itself; None: never."""
    gate: GateParams | None = None
    """Bounds that a model is accepted by; None: no model is decided about."""
    retraining: RetrainingParams | None = None
    """When the model is trained again; None: nothing is trained again by itself."""
    alerts: AlertsParams | None = None
    """Who is told what went wrong; None: nobody is."""
    retention: RetentionParams = RetentionParams()
    """For how long a clean-up keeps things."""

    @model_validator(mode="after")
    def _retraining_has_a_gate(self) -> Self:
        if self.retraining is not None and self.gate is None:
            raise ValueError("retraining needs a gate, which says whether its model is accepted; fill operations.gate")
        return self


def read_operations(params: Path) -> OperationsParams:
    """Read the section `operations` of a params file, which may be absent.

    Raises:
        ConfigError: it is wrong, or there is no such file.
    """
    return OperationsParams.from_params(read_params(params).get("operations") or {}, f"{params}: operations")
