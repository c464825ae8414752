import time, signal, asyncio, os
from tests.acceptance.test_signals import *
from tests.acceptance.test_signals import _stored, _each_once, _ENOUGH
async def test_x(launch, site):
    t0=time.time()
    def p(x): print(round(time.time()-t0,2), x, flush=True)
    first = launch(site.company); p("ready")
    async with loaded(site) as load:
        await _stored(site, _ENOUGH); p(("stored", load.published))
        rc=await asyncio.to_thread(first.stop); p(("stopped",rc, load.published))
        launch(site.company); p(("second",load.published))
        await _stored(site, load.published); p("caught up")
    p("load off")
    await site.settled(); p("settled")
    await _each_once(site); p("each once")
    for l in first.lines():
        print(l["ts"], l["logger"], l["msg"][:150])
