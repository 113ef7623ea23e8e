"""Self-supervised pretraining: its objective, its step, what watches it, and the stage `pretrain`."""
