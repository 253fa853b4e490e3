"""Which operands take INT8, and in which range: found on real inputs."""
