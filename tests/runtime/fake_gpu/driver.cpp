// A CUDA driver of host memory: the entry points that stg_runtime.backends.cuda.device calls, with
// the kernels' host build behind cuLaunchKernel. Built by the tests as libcuda.so.1, so that the
// real bindings and the real CudaDevice run where there is no GPU. Every call is logged to
// $FAKE_CUDA_LOG. Streams run at once; a capturing stream records instead.
//
// FAKE_CUDA_VERSION (13000), FAKE_CUDA_DEVICES (1), FAKE_CUDA_MEMORY (1 GiB), FAKE_CUDA_INIT (0).

#include "langevin.cu"

#include <cstdio>
#include <dlfcn.h>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

typedef int R;
typedef std::vector<std::function<void()>> Work;

static Work *recording = nullptr;
static std::map<u64, size_t> taken;
static size_t in_use = 0;

static long env(const char *name, long fallback) {
  const char *text = getenv(name);
  return text ? atol(text) : fallback;
}
static void log_call(const char *what) {
  if (const char *path = getenv("FAKE_CUDA_LOG"))
    if (FILE *file = fopen(path, "a")) {
      fprintf(file, "%s\n", what);
      fclose(file);
    }
}
static R enqueue(const char *what, std::function<void()> work) {
  log_call((std::string(recording ? "record " : "") + what).c_str());
  if (recording)
    recording->push_back(work);
  else
    work();
  return 0;
}

extern "C" {
// The bindings ask for every function by name and version; ours are of CUDA 12 and newer.
R cuGetProcAddress_v2(const char *name, void **function, int, u64, int *status) {
  std::string text(name);
  Dl_info here, there;
  dladdr((void *)&cuGetProcAddress_v2, &here);
  auto ours = [&] { return *function && dladdr(*function, &there) && there.dli_fbase == here.dli_fbase; };
  void *self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *function = dlsym(self, (text + "_v2").c_str());
  if (!ours()) *function = dlsym(self, name);
  if (!ours()) *function = nullptr;
  if (status) *status = *function ? 0 : 1;
  return 0;
}
R cuInit(unsigned) { return (R)env("FAKE_CUDA_INIT", 0); }
R cuDriverGetVersion(int *v) { *v = (int)env("FAKE_CUDA_VERSION", 13000); return 0; }
R cuDeviceGetCount(int *n) { *n = (int)env("FAKE_CUDA_DEVICES", 1); return 0; }
R cuDeviceGet(int *d, int i) { *d = i; return 0; }
R cuDeviceGetName(char *name, int length, int) { snprintf(name, length, "Fake GPU"); return 0; }
R cuDeviceGetAttribute(int *value, int attribute, int) {
  *value = attribute == 75 ? (int)env("FAKE_CUDA_MAJOR", 9) : 0; // 75, 76: capability
  return 0;
}
R cuDevicePrimaryCtxRetain(void **c, int) { *c = (void *)1; return 0; }
R cuCtxSetCurrent(void *) { return 0; }
R cuStreamCreate(void **s, unsigned) { *s = (void *)0x51; return 0; }
R cuMemAlloc_v2(u64 *address, size_t size) {
  if (in_use + size > (size_t)env("FAKE_CUDA_MEMORY", 1L << 30)) return 2;
  *address = (u64)aligned_alloc(256, (size + 255) / 256 * 256);
  memset((void *)*address, 0xff, size); // poison
  taken[*address] = size;
  in_use += size;
  log_call("allocate");
  return 0;
}
R cuMemFree_v2(u64 address) {
  if (!taken.count(address)) return 1;
  in_use -= taken[address];
  taken.erase(address);
  free((void *)address);
  log_call("free");
  return 0;
}
R cuMemGetInfo_v2(size_t *free_, size_t *total) {
  *total = (size_t)env("FAKE_CUDA_MEMORY", 1L << 30);
  *free_ = *total - in_use;
  return 0;
}
R cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t size, void *) {
  if (recording) return 900; // pageable memory cannot be captured safely
  log_call("upload");
  memcpy((void *)to, from, size);
  return 0;
}
R cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t size, void *) {
  if (recording) return 900;
  log_call("download");
  memcpy(to, (void *)from, size);
  return 0;
}
R cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t size, void *) {
  return enqueue("copy", [=] { memcpy((void *)to, (void *)from, size); });
}
R cuStreamSynchronize(void *) {
  if (recording) return 900;
  log_call("wait");
  return 0;
}
R cuModuleLoadData(void **module, const void *) { *module = (void *)2; return 0; }
R cuModuleGetFunction(void **function, void *, const char *name) {
  *function = strdup(name);
  return 0;
}
R cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                 unsigned bz, unsigned, void *, void **p, void **) {
  std::string name = (const char *)function;
  if (gz != 1 || bx != 256 || by != 1 || bz != 1) return 1;
  auto pointer = [p](int i) { return *(u64 *)p[i]; };
  if (name == "stg_start") {
    float *x = (float *)pointer(0);
    Walk *walk = (Walk *)pointer(1);
    const u64 *chains = (const u64 *)pointer(2);
    float std = *(float *)p[3];
    u64 size = *(u64 *)p[4];
    if ((u64)gx * 256 * 8 < size) return 1;
    return enqueue("stg_start", [=] { host_start(x, walk, chains, std, size, gy); });
  }
  if (name == "stg_hold") {
    float *x = (float *)pointer(0);
    auto known = (const unsigned char *)pointer(1);
    auto value = (const float *)pointer(2);
    u64 size = *(u64 *)p[3];
    return enqueue("stg_hold", [=] { host_hold(x, known, value, size, gy); });
  }
  if (name == "stg_step") {
    float *x = (float *)pointer(0);
    auto grad = (const float *)pointer(1);
    auto known = (const unsigned char *)pointer(2);
    auto value = (const float *)pointer(3), energy = (const float *)pointer(4);
    auto energies = (float *)pointer(5);
    auto walk = (Walk *)pointer(6);
    auto chains = (const u64 *)pointer(7);
    u64 size = *(u64 *)p[8];
    u32 rows = *(u32 *)p[9];
    if ((u64)gx * 256 * 8 < size) return 1;
    return enqueue("stg_step", [=] {
      host_step(x, grad, known, value, energy, energies, walk, chains, size, rows, gy);
    });
  }
  if (name == "stg_words") {
    u64 seed = pointer(0), chain = pointer(1), groups = pointer(3);
    u32 step = *(u32 *)p[2];
    u64 *words = (u64 *)pointer(4);
    return enqueue("stg_words", [=] { host_words(seed, chain, step, groups, words); });
  }
  if (name == "stg_draw") {
    float *out = (float *)pointer(0);
    u64 seed = pointer(1), chain = pointer(2), size = pointer(4);
    u32 skip = *(u32 *)p[3], stride = *(u32 *)p[5];
    if ((u64)gx * 256 * 8 < size + skip) return 1;
    return enqueue("stg_draw", [=] { host_draw(out, seed, chain, skip, size, stride); });
  }
  if (name == "stg_along" || name == "stg_colour") {
    float *x = (float *)pointer(0);
    Along along = *(Along *)p[1];
    bool colour = name == "stg_colour";
    if ((u64)gx * 256 < along.H * along.W) return 1;
    u32 rows = colour ? along.T : along.channels * ((along.T + 7) / 8);
    if (gy != (rows < 65535 ? rows : 65535)) return 1;
    return enqueue(name.c_str(), [=] { colour ? host_colour(x, &along) : host_along(x, &along); });
  }
  if (name == "stg_filter_time" || name == "stg_filter_space") {
    Filter filter = *(Filter *)p[0];
    bool space = name == "stg_filter_space";
    u32 rows = filter.channels * filter.T;
    if ((u64)gx * 256 < filter.H * filter.W || gy != (rows < 65535 ? rows : 65535)) return 1;
    return enqueue(name.c_str(), [=] { host_filter(&filter, space); });
  }
  if (name == "stg_fourier") {
    Pass pass = *(Pass *)p[0];
    if ((u64)gx * 256 < pass.count) return 1;
    return enqueue("stg_fourier", [=] { host_fourier(&pass); });
  }
  if (name == "stg_times") {
    float *out = (float *)pointer(0);
    auto a = (const float *)pointer(1), b = (const float *)pointer(2);
    u64 size = pointer(3);
    if ((u64)gx * 256 < size) return 1;
    return enqueue("stg_times", [=] { host_times(out, a, b, size); });
  }
  if (name == "stg_take") {
    Taken taken = *(Taken *)p[0];
    if ((u64)gx * 256 < taken.T * taken.H * taken.W) return 1;
    return enqueue("stg_take", [=] { host_take(&taken); });
  }
  return 500; // not found
}
R cuStreamBeginCapture_v2(void *, int) {
  if (recording) return 1;
  log_call("begin capture");
  recording = new Work;
  return 0;
}
R cuStreamEndCapture(void *, void **graph) {
  if (!recording) return 1;
  log_call("end capture");
  *graph = recording;
  recording = nullptr;
  return 0;
}
R cuGraphInstantiate(void **exec, void *graph, u64) {
  *exec = new Work(*(Work *)graph);
  return 0;
}
R cuGraphInstantiateWithFlags(void **exec, void *graph, u64 flags) {
  return cuGraphInstantiate(exec, graph, flags);
}
R cuGraphDestroy(void *graph) { delete (Work *)graph; return 0; }
R cuGraphExecDestroy(void *exec) { log_call("drop graph"); delete (Work *)exec; return 0; }
R cuGraphLaunch(void *exec, void *) {
  log_call("replay");
  for (auto &work : *(Work *)exec) work();
  return 0;
}
R cuEventCreate(void **e, unsigned) { *e = (void *)3; return 0; }
R cuEventRecord(void *, void *) { return 0; }
R cuEventSynchronize(void *) { return 0; }
R cuEventElapsedTime(float *ms, void *, void *) { *ms = 1.0f; return 0; }
R cuEventElapsedTime_v2(float *ms, void *, void *) { *ms = 1.0f; return 0; }
R cuGetErrorString(R code, const char **text) {
  *text = code == 2 ? "out of memory" : code == 100 ? "no CUDA-capable device is detected" : "fake";
  return 0;
}
// For the tests' gradient E = |x|^2 / 2, enqueued as a library would.
R fake_spring(const float *x, float *energy, float *grad, u64 size, u32 n_chains) {
  return enqueue("gradient", [=] {
    for (u32 n = 0; n < n_chains; ++n) {
      float sum = 0;
      for (u64 i = n * size; i < (n + 1) * size; ++i) {
        grad[i] = x[i];
        sum += x[i] * x[i];
      }
      energy[n] = sum / 2;
    }
  });
}
}
