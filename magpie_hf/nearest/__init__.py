"""Nearest neighbors and near-duplicates of embeddings: exact, approximate, and across two sets.

Distance is squared L2 of unit vectors, 2 - 2 cos, in [0, 4], as in the released column `min_neighbor_distance`.
"""
