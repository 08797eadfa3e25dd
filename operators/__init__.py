"""What happens to a chunk: array code without Ray and without files."""
