"""Recognize environment variables that look like settings but are service links, which Kubernetes sets."""

import re

_NAME = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
_ADDRESS = re.compile("(tcp|udp|sctp)://")


def is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes set the variable for a Service, such as CATBREEDS_PORT=tcp://10.0.0.1:80.

    A name like CATBREEDS_PAGE_PORT can be a setting or a service link; it is a link only if its value is an address.
    """
    match = _NAME.search(name)
    if not match:
        return False
    return bool(_ADDRESS.match(value)) if match[0] == "_PORT" else True
