"""Student and teacher: backbone, heads, Composer and Decomposer (method.md §3)."""
