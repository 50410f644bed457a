"""Rows of the field's own types, and importers that read foreign formats into them."""

from alignment.records.files import each_line, each_record, read_records, record_of, write_json_lines, write_records
from alignment.records.types import Message, Record, RecordType, bad_row, reasons

__all__ = ["Message", "Record", "RecordType", "bad_row", "each_line", "each_record", "read_records", "reasons",
           "record_of", "write_json_lines", "write_records"]
