"""Kvasir: a long-context inference server that reads a document once and answers many questions."""

import os

__version__ = "0.1.0"

# Between two operations torch's threads wait for each other by spinning, by default for many
# milliseconds. Beside other torch processes on the same cores this was seen to take 10 to 30 times
# longer (docs/adr/0004 says how sure that is); a short spin costs a few percent on an idle machine.
# It must be set before torch is loaded; whoever sets it already is obeyed.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
