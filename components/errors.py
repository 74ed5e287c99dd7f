"""Errors that a person can mend; the message says how."""


class DataError(ValueError):
    """The photos are not what the pipeline can learn from; the message names files or breeds."""


class WeightsError(ValueError):
    """A backbone's weights cannot be had; the message names the file or setting to mend."""


class DamagedFileError(ValueError):
    """A document that a component wrote is damaged; the message names the file."""


class HistoryError(ValueError):
    """What was asked of past runs is not known; the message says what is."""
