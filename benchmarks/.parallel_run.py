import json
import os
import sys
import tempfile
import time

import torch


def work(executor, network, images, models):
    import saliency_lab as sl

    sl.show_progress(False)
    shape = (1, 28, 28) if network in ("small_cnn", "sgt_cnn") else (3, 32, 32)
    nets = {f"net-{i}": sl.build_model(network, input_shape=shape, seed=i) for i in range(models)}
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(images, *shape, generator=source), torch.arange(images) % 10
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as store:
        study = sl.Study(nets, (x, y), store=store, executor=executor, compile=False)
        study.attribute(["saliency", "integrated_gradients"]).score({"pixel_flipping": {}, "sparseness": {}})
        assert study.failures.empty
    return time.perf_counter() - began


def warm(_):

    torch.set_num_threads(1)
    time.sleep(0.5)


if __name__ == "__main__":
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    way, network, images, models = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    cores = len(os.sched_getaffinity(0))
    if way == "processes":
        began = time.perf_counter()
        with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
            list(pool.map(warm, range(cores)))
            started = time.perf_counter() - began
            print(json.dumps([work(pool, network, images, models), started]))
    else:
        torch.set_num_threads(cores if way == "threads" else 1)
        work(None, network, 4, 1)  # the first passes of the process
        print(json.dumps([work(None, network, images, models), 0.0]))
