"""What every other room agrees on: errors, row identity, stages, sources, media, registries.

Nothing here imports another Winnow package, Ray, torch or the network. See docs/adr/0002.
"""
