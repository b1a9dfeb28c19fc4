"""Starts a worker, keeps it busy, prints its process id and waits to be killed."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

    import numpy as np
    from helpers.stub_engine import Seed, load
    from helpers.waiting import wait_for

    from cosmos_policy_ros.inference.spec import Decide, EngineSpec
    from cosmos_policy_ros.inference.worker import ProcessHost, Worker, WorkerLimits
    from cosmos_policy_ros.rig.decision import Query
    from cosmos_policy_ros.rig.observation import Observation

    worker = Worker(ProcessHost(EngineSpec("cosmos"), load), WorkerLimits())
    query = Query("t", "p", Seed.SLEEP_FIRST, 0, Observation(0, {}, np.zeros(14), {}))
    wait_for(worker.submit(Decide(query)).running, "the query")
    print(worker.pid, flush=True)
    wait_for(lambda: False, "the end")
