"""Images are measured one by one and judged together: blank, inverted, turned, copied and more."""
