"""Model architectures: one shared decoder, one small file per family, a registry by config."""
