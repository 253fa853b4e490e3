"""Which operands take 8-bit codes, and in which range: found on real inputs."""
