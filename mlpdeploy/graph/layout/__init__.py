"""The algebra of reshape and permute, and the pass that lets most of them vanish."""
