"""One module for each group of URLs; each has ``build_router(context)``."""
