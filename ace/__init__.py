"""What is learned: Anatomically Consistent Embeddings (ACE) in composition and decomposition."""
