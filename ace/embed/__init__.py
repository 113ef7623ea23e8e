"""Images become embeddings: one preprocessing, one E(x) and one reader of encoders, for whoever needs them."""
