"""A model of the store as others load it: merged, compared with what was trained, converted, described, pushed.

Everything is made from the artifact, and held against it before it counts. Trains nothing, and quantises nothing that
is not compared.
"""
