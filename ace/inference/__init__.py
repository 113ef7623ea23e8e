"""Use of a trained model: embeddings in Python and of whole folders, and export to other runtimes."""
