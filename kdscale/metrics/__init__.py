"""Figures of a whole test set beside the usual ones: one file a metric, a function of logits and labels."""
