"""Programs one after another in each process of one launch: `launched.py JSON`, a list of command
lines, each after a free port. Each runs in a fork, so that the imports, 10 s a process, are paid
once; the first that fails ends the launch with its exit code.
"""

import json
import os
import sys
from functools import partial

import eval as evaluation
import train_loop
from tests.programs import in_a_fork

MAINS = {"train_loop.py": train_loop.main, "eval.py": evaluation.main}

if __name__ == "__main__":
    for port, program, *flags in json.loads(sys.argv[1]):
        if port != os.environ["MASTER_PORT"]:  # the launcher's store is for one group of processes
            os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
        code = in_a_fork(partial(MAINS[program], flags))
        if code:
            sys.exit(code)
        print(f"{program} is done", flush=True)
