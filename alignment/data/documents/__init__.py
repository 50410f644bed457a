"""Files of documents to blocks of text, a reader for each kind of file; and blocks to passages.

    readers.py   which reader a file has, its size and encoding
    plain.py     txt and md         pdf.py   pdf
    markup.py    html and docx      table.py csv and tsv, row by row
    blocks.py    what readers give: paragraphs and headings
    chunks.py    passages of blocks, on borders of paragraphs and sentences
"""
