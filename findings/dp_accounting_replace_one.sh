#!/usr/bin/env bash
# Package:  dp-accounting (RdpAccountant, PLDAccountant)
# Version:  dp-accounting 0.6.0
# Expected: two accountants given the same event and the same neighbouring
#           relation differ by the slack of their bounds, some percent, and RDP
#           is the larger.
# Happens:  under REPLACE_ONE the PLD accountant doubles the sensitivity of a
#           GaussianDpEvent (one record goes and another comes), the RDP
#           accountant does not: epsilon 11.0 against 5.2.
# Matters:  the choice of accountant decides whether a guarantee for replaced
#           records is stated at half its size. With RDP, halve the noise
#           multiplier oneself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  'dp-accounting==0.6.0'
cd "$work"
"$work/venv/bin/python" -I - <<'END'
import sys
from importlib import metadata

from dp_accounting import GaussianDpEvent
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

DELTA = 1e-6


def epsilon(accountant, relation):
  accountant = accountant(neighboring_relation=relation)
  return accountant.compose(GaussianDpEvent(1.0)).get_epsilon(DELTA)


print(f"dp-accounting {metadata.version('dp-accounting')}")
print(f"epsilon at {DELTA} of one Gaussian release, noise multiplier 1")
found = {}
for relation in ("ADD_OR_REMOVE_ONE", "REPLACE_ONE"):
  kind = NeighboringRelation[relation]
  found[relation] = epsilon(RdpAccountant, kind), epsilon(PLDAccountant, kind)
  print(relation, "RDP {:.3f}, PLD {:.3f}".format(*found[relation]))
rdp, pld = found["ADD_OR_REMOVE_ONE"]
rdp_one, pld_one = found["REPLACE_ONE"]
if not (pld < rdp < 1.1 * pld and rdp_one == rdp and pld_one > 2 * rdp_one):
  sys.exit("changed: the accountants agree on what replacement costs.")
print("so: under REPLACE_ONE the RDP bound lies below the PLD value.")
END
