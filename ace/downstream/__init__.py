"""Tasks that an encoder is for: splits, few-shot draws, training on labels, and the stage `finetune`."""
