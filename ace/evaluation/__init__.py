"""What the embeddings show: compositionality, decompositionality, correspondence."""
