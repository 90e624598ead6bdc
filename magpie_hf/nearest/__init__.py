"""Nearest neighbours and near duplicates of embeddings: exact, approximate, and against another set.

Distance is squared L2 of unit vectors, 2 - 2 cos, in [0, 4], as in the released column `min_neighbor_distance`.
"""
