"""Names that moved to `ace.embed.probe_scores`."""

from ace.embed.probe_scores import NOT_KNOWN, auroc_by_label, knn_votes, linear_scores

__all__ = ["NOT_KNOWN", "auroc_by_label", "knn_votes", "linear_scores"]
