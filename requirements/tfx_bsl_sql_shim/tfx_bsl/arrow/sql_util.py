"""Replacement for the SQL slicing module that tfx-bsl 1.21 no longer has."""


class RecordBatchSQLSliceQuery:
    """Stub that rejects SQL slice queries; tensorflow-data-validation uses nothing else from the module."""

    def __init__(self, sql, arrow_schema):
        """Raise NotImplementedError, because tfx-bsl 1.21 has no SQL engine."""
        raise NotImplementedError(
            f"Slicing statistics by SQL ({sql!r}) needs a tfx-bsl with ZetaSQL. Slice by feature value instead."
        )
