"""All campaigns, large: kills, bad inputs, payloads in notebooks, behaviours of servers.  make campaign

Each prints its seed and its figures; the exit code is 1 where one of them found a fault.
"""

import argparse
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", default="0")
    parser.add_argument("--inputs", default="1200", help="bad inputs (about a minute)")
    parser.add_argument("--servers", default="180", help="behaviours of a server (seconds)")
    parser.add_argument("--kills", default="100", help="kills (some 20 seconds each)")
    given = parser.parse_args()
    campaigns = {
        "inputs": ["--n", given.inputs, "--seed", given.seed],
        "server_behaviours": ["--n", given.servers, "--seed", given.seed],
        "payloads": [],
        "kills": ["--n", given.kills, "--seed", given.seed],
    }
    faults = []
    for name, arguments in campaigns.items():
        print(f"== {name} {' '.join(arguments)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.campaigns.{name}", *arguments]).returncode:
            faults.append(name)
    print(f"faults in: {', '.join(faults)}" if faults else f"{len(campaigns)} campaigns, no fault", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
