"""Stands in for the SQL slicing that tfx-bsl 1.21 dropped."""


class RecordBatchSQLSliceQuery:
    """Refuses SQL slice queries; nothing else of the module is used by tensorflow-data-validation."""

    def __init__(self, sql, arrow_schema):
        """Raises NotImplementedError: tfx-bsl 1.21 has no SQL engine."""
        raise NotImplementedError(
            f"Slicing statistics by SQL ({sql!r}) needs a tfx-bsl with ZetaSQL. Slice by feature value instead."
        )
