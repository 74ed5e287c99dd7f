"""Environment variables that are not meant for the programs which read variables of their name."""

import re

_NAME = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
_ADDRESS = re.compile("(tcp|udp|sctp)://")


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes sets the variable to tell pods about a Service: CATBREEDS_PORT=tcp://10.0.0.1:80, for example.

    Where both a Service and a setting could be meant, such as by CATBREEDS_PAGE_PORT, only an address is a link.
    """
    named = _NAME.search(name)
    if not named:
        return False
    return bool(_ADDRESS.match(value)) if named[0] == "_PORT" else True
