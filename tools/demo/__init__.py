"""How the bundled demo models were made: the grammar they learned from, and their training.

Runs from a checkout and is not part of the package. To teach the models another kind of exchange: write a form
(`grammar.base.form`), add its module to `grammar.sample`, and run `python -m tools.demo.train`.
"""
