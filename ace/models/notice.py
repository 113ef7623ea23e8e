"""Every model card has these texts, whoever trained the model."""

NOTICE = """\
Not a medical device, not for clinical use. The method is the subject of US patent applications US20250272962 and
US20260187795."""
