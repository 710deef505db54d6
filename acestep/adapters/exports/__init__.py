"""Adapters for other programs: files each of them loads, merged models, and proof that they load.

`opened` reads an adapter without the model around it; `formats` writes what each program wants; `merging` adds an
adapter to a whole model; `consumers` restates how each program reads a file, from its published behaviour and
without using the code that writes; `checking` compares the two.
"""
