/* An emulated GPU: the functions of CUDA's driver that the mesh calls, over memory of the host.
 *
 * It has the names and the types of cuda.h (and is compiled against it where a toolkit is installed), so that the binding runs over
 * it unchanged. Memory of the "device" is a memfd, which another process opens by the token, as CUDA IPC does. Addresses are no
 * addresses of the host: a bit is set in them that makes any access by the processor a fault. Calls without a current context fail,
 * as those of the real driver do, and so does a token that is opened in the process that made it. Where the kernel has /dev/udmabuf,
 * the descriptors for network cards are real dma-bufs of the same pages; elsewhere they are the memfd.
 *
 * EMULATED_CUDA_DEVICES says how many there are, EMULATED_CUDA_UUID of which host, EMULATED_CUDA_NO_DMA_BUF that they have none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <linux/udmabuf.h>
#include <unistd.h>

#if defined(WITH_CUDA_H)
#include <cuda.h>
#else
typedef enum {
    CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100, CUDA_ERROR_INVALID_DEVICE = 101, CUDA_ERROR_INVALID_CONTEXT = 201, CUDA_ERROR_MAP_FAILED = 205,
    CUDA_ERROR_INVALID_HANDLE = 400, CUDA_ERROR_NOT_READY = 600, CUDA_ERROR_NOT_SUPPORTED = 801
} CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct { char bytes[16]; } CUuuid;
typedef struct { char reserved[64]; } CUipcMemHandle;
typedef int CUdevice_attribute, CUpointer_attribute, CUmemRangeHandleType;
typedef int CUflushGPUDirectRDMAWritesTarget, CUflushGPUDirectRDMAWritesScope;
#define cuDeviceGetUuid cuDeviceGetUuid_v2
#define cuDeviceTotalMem cuDeviceTotalMem_v2
#define cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2
#define cuCtxPushCurrent cuCtxPushCurrent_v2
#define cuCtxPopCurrent cuCtxPopCurrent_v2
#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuMemGetAddressRange cuMemGetAddressRange_v2
#define cuMemsetD8 cuMemsetD8_v2
#define cuMemcpyHtoD cuMemcpyHtoD_v2
#define cuMemcpyDtoH cuMemcpyDtoH_v2
#define cuMemcpyDtoDAsync cuMemcpyDtoDAsync_v2
#define cuIpcOpenMemHandle cuIpcOpenMemHandle_v2
#define cuStreamDestroy cuStreamDestroy_v2
#define cuEventDestroy cuEventDestroy_v2
#define CUDAAPI
#endif

#define TAG (1ULL << 62)
#define DEVICES_MAX 8
#define BLOCKS_MAX 4096
#define MEMORY_BYTES (4ULL << 30)
#define DEPTH_MAX 16
#define MAGIC 0x6973632d67707531ULL

struct block { char *host; size_t size; int fd; int ordinal; int opened; ino_t inode; };
struct token { uint64_t magic; int32_t pid; int32_t fd; uint64_t inode; uint64_t size; int32_t ordinal; };
struct CUctx_st { int ordinal; int retained; };
struct CUstream_st { int dummy; };
struct CUevent_st { unsigned long held; };
struct exported { ino_t inode; CUdeviceptr at; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block blocks[BLOCKS_MAX];
static struct CUctx_st contexts[DEVICES_MAX];
static __thread CUcontext stack[DEPTH_MAX];
static __thread int depth;
static int count, ready;
static unsigned long holds, released;
static char failing[64];
static int failing_result, n_failing;
static size_t used;
static struct exported exports[BLOCKS_MAX];
static unsigned int n_exports;
static unsigned long flushes;

#define FAILS(name) do { int r_ = fails(name); if (r_) return (CUresult)r_; } while (0)
#define NEEDS_CONTEXT() do { if (!depth) return CUDA_ERROR_INVALID_CONTEXT; } while (0)

static int fails(const char *name)
{
    int result = 0;
    pthread_mutex_lock(&lock);
    if (n_failing && !strcmp(name, failing)) { result = failing_result; n_failing--; }
    pthread_mutex_unlock(&lock);
    return result;
}

/* For tests: a function fails so many times. */
void emulated_fail(const char *name, int result, int times)
{
    pthread_mutex_lock(&lock);
    snprintf(failing, sizeof failing, "%s", name);
    failing_result = result;
    n_failing = times;
    pthread_mutex_unlock(&lock);
}

/* For tests: what is recorded from now on is not reached before the next call with 0. */
void emulated_hold(int on)
{
    pthread_mutex_lock(&lock);
    if (on) holds++; else released = holds;
    pthread_mutex_unlock(&lock);
}

/* For tests: blocks that this process has, of its own or opened. */
int emulated_blocks(int opened)
{
    int n = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BLOCKS_MAX; i++) n += blocks[i].host && !blocks[i].opened == !opened;
    pthread_mutex_unlock(&lock);
    return n;
}

/* For tests: how often the writes of network cards were flushed. */
unsigned long emulated_flushes(void) { return flushes; }

static struct block *block_of(CUdeviceptr at)
{
    if (!(at & TAG)) return NULL;
    char *host = (char *)(uintptr_t)(at & ~TAG);
    for (int i = 0; i < BLOCKS_MAX; i++)
        if (blocks[i].host && host >= blocks[i].host && host < blocks[i].host + blocks[i].size) return &blocks[i];
    return NULL;
}

/* Where `size` bytes of the device lie in the host's memory; NULL where they are not all in one block. */
static char *host_of(CUdeviceptr at, size_t size)
{
    struct block *block = block_of(at);
    char *host = (char *)(uintptr_t)(at & ~TAG);
    return block && size <= (size_t)(block->host + block->size - host) ? host : NULL;
}

static CUdeviceptr keep(char *host, size_t size, int fd, int ordinal, int opened, ino_t inode)
{
    for (int i = 0; i < BLOCKS_MAX; i++)
        if (!blocks[i].host) {
            blocks[i] = (struct block){host, size, fd, ordinal, opened, inode};
            return (CUdeviceptr)(uintptr_t)host | TAG;
        }
    return 0;
}

CUresult cuGetErrorName(CUresult error, const char **text)
{
    switch ((int)error) {
    case 1: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case 2: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case 100: *text = "CUDA_ERROR_NO_DEVICE"; break;
    case 201: *text = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case 205: *text = "CUDA_ERROR_MAP_FAILED"; break;
    case 400: *text = "CUDA_ERROR_INVALID_HANDLE"; break;
    case 700: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    default: *text = NULL; return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    *text = "said by the emulated device";
    return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuInit(unsigned int flags)
{
    FAILS("cuInit");
    const char *told = getenv("EMULATED_CUDA_DEVICES");
    count = told ? atoi(told) : 1;
    if (flags || count < 0 || count > DEVICES_MAX) return CUDA_ERROR_INVALID_VALUE;
    if (!count) return CUDA_ERROR_NO_DEVICE;
    for (int i = 0; i < count; i++) contexts[i].ordinal = i;
    ready = 1;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int *out) { if (!ready) return CUDA_ERROR_NOT_INITIALIZED; *out = count; return CUDA_SUCCESS; }

CUresult cuDeviceGet(CUdevice *out, int ordinal)
{
    if (ordinal < 0 || ordinal >= count) return CUDA_ERROR_INVALID_DEVICE;
    *out = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    snprintf(name, length, "Emulated GPU %d", device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    const char *told = getenv("EMULATED_CUDA_UUID");
    memset(uuid->bytes, 0, sizeof uuid->bytes);
    snprintf(uuid->bytes, sizeof uuid->bytes, "%.12s", told ? told : "emulated");
    uuid->bytes[15] = (char)device;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device)
{
    snprintf(text, length, "0000:%02X:00.0", 0x1a + device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *size, CUdevice device) { (void)device; *size = MEMORY_BYTES; return CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *out, CUdevice_attribute attribute, CUdevice device)
{
    (void)device;
    *out = attribute == 41 || attribute == 116 || attribute == 117;
    if (attribute == 124) *out = getenv("EMULATED_CUDA_NO_DMA_BUF") == NULL;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device)
{
    FAILS("cuDevicePrimaryCtxRetain");
    if (device < 0 || device >= count) return CUDA_ERROR_INVALID_DEVICE;
    contexts[device].retained++;
    *out = &contexts[device];
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) { contexts[device].retained--; return CUDA_SUCCESS; }

CUresult cuCtxPushCurrent(CUcontext context)
{
    if (!context || !context->retained || depth == DEPTH_MAX) return CUDA_ERROR_INVALID_CONTEXT;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext *out)
{
    NEEDS_CONTEXT();
    *out = stack[--depth];
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void) { NEEDS_CONTEXT(); FAILS("cuCtxSynchronize"); return CUDA_SUCCESS; }

CUresult cuMemAlloc(CUdeviceptr *out, size_t size)
{
    NEEDS_CONTEXT();
    FAILS("cuMemAlloc");
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    int fd = used + size <= MEMORY_BYTES ? memfd_create("emulated-gpu", MFD_CLOEXEC | MFD_ALLOW_SEALING) : -1;
    char *host = fd >= 0 && !ftruncate(fd, (off_t)size) ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (host != MAP_FAILED) {
        struct stat status;
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK); /* udmabuf wants it */
        fstat(fd, &status);
        *out = keep(host, size, fd, stack[depth - 1]->ordinal, 0, status.st_ino);
        used += size;
        result = CUDA_SUCCESS;
    } else if (fd >= 0)
        close(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuMemFree(CUdeviceptr at)
{
    NEEDS_CONTEXT();
    pthread_mutex_lock(&lock);
    struct block *block = block_of(at);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (block && !block->opened && ((CUdeviceptr)(uintptr_t)block->host | TAG) == at) {
        munmap(block->host, block->size);
        close(block->fd);
        used -= block->size;
        block->host = NULL;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *size, CUdeviceptr at)
{
    NEEDS_CONTEXT();
    struct block *block = block_of(at);
    if (!block) return CUDA_ERROR_INVALID_VALUE;
    *base = (CUdeviceptr)(uintptr_t)block->host | TAG;
    *size = block->size;
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t size)
{
    NEEDS_CONTEXT();
    FAILS("cuMemsetD8");
    char *host = host_of(to, size);
    if (!host) return CUDA_ERROR_INVALID_VALUE;
    memset(host, value, size);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t size)
{
    NEEDS_CONTEXT();
    char *host = host_of(to, size);
    if (!host) return CUDA_ERROR_INVALID_VALUE;
    memcpy(host, from, size);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t size)
{
    NEEDS_CONTEXT();
    FAILS("cuMemcpyDtoH");
    char *host = host_of(from, size);
    if (!host) return CUDA_ERROR_INVALID_VALUE;
    memcpy(to, host, size);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    NEEDS_CONTEXT();
    FAILS("cuMemcpyDtoDAsync");
    (void)stream;
    char *target = host_of(to, size), *source = host_of(from, size);
    if (!target || !source) return CUDA_ERROR_INVALID_VALUE;
    memmove(target, source, size);
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *out, CUpointer_attribute attribute, CUdeviceptr at)
{
    struct block *block = block_of(at);
    if (!block) return CUDA_ERROR_INVALID_VALUE;
    switch ((int)attribute) {
    case 2: *(unsigned int *)out = 2; return CUDA_SUCCESS;
    case 8: *(unsigned char *)out = 0; return CUDA_SUCCESS;
    case 9: *(int *)out = block->ordinal; return CUDA_SUCCESS;
    case 11: *(CUdeviceptr *)out = (CUdeviceptr)(uintptr_t)block->host | TAG; return CUDA_SUCCESS;
    case 12: *(size_t *)out = block->size; return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuIpcGetMemHandle(CUipcMemHandle *out, CUdeviceptr at)
{
    NEEDS_CONTEXT();
    FAILS("cuIpcGetMemHandle");
    struct block *block = block_of(at);
    if (!block || block->opened) return CUDA_ERROR_INVALID_VALUE;
    struct token token = {MAGIC, (int32_t)getpid(), block->fd, block->inode, block->size, block->ordinal};
    memset(out, 0, sizeof *out);
    memcpy(out, &token, sizeof token);
    return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle(CUdeviceptr *out, CUipcMemHandle handle, unsigned int flags)
{
    NEEDS_CONTEXT();
    FAILS("cuIpcOpenMemHandle");
    struct token token;
    memcpy(&token, &handle, sizeof token);
    if (flags != 1 || token.magic != MAGIC) return CUDA_ERROR_INVALID_VALUE;
    if (token.pid == (int32_t)getpid()) return CUDA_ERROR_INVALID_CONTEXT;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", token.pid, token.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (fd < 0) return CUDA_ERROR_MAP_FAILED;
    if (fstat(fd, &status) || status.st_ino != token.inode || status.st_size <= 0) { close(fd); return CUDA_ERROR_INVALID_HANDLE; }
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BLOCKS_MAX; i++)
        if (blocks[i].host && blocks[i].opened && blocks[i].inode == status.st_ino) {
            blocks[i].opened++;
            *out = (CUdeviceptr)(uintptr_t)blocks[i].host | TAG;
            goto done;
        }
    char *host = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (host == MAP_FAILED) result = CUDA_ERROR_MAP_FAILED;
    else *out = keep(host, (size_t)status.st_size, -1, token.ordinal, 1, status.st_ino);
done:
    pthread_mutex_unlock(&lock);
    close(fd);
    return result;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr at)
{
    NEEDS_CONTEXT();
    pthread_mutex_lock(&lock);
    struct block *block = block_of(at);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (block && block->opened) {
        if (!--block->opened) { munmap(block->host, block->size); block->host = NULL; }
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* For the emulated network card: the memory behind a dma-buf that was made here, and where in it that begins. */
int emulated_memory_of(ino_t inode, off_t *offset)
{
    int fd = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BLOCKS_MAX; i++) {
        struct block *block = exports[i].inode == inode ? block_of(exports[i].at) : NULL;
        if (!block) continue;
        *offset = (off_t)((char *)(uintptr_t)(exports[i].at & ~TAG) - block->host);
        fd = block->fd;
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static int make_dma_buf(struct block *block, CUdeviceptr at, size_t size)
{
    struct udmabuf_create wanted = {
        (uint32_t)block->fd, UDMABUF_FLAGS_CLOEXEC, (uint64_t)((char *)(uintptr_t)(at & ~TAG) - block->host), size
    };
    struct stat status;
    int maker = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
    int made = maker < 0 ? fcntl(block->fd, F_DUPFD_CLOEXEC, 0) : ioctl(maker, UDMABUF_CREATE, &wanted);
    if (maker >= 0) close(maker);
    if (made < 0 || fstat(made, &status)) return made;
    pthread_mutex_lock(&lock);
    exports[n_exports++ % BLOCKS_MAX] = (struct exported){status.st_ino, at};
    pthread_mutex_unlock(&lock);
    return made;
}

CUresult cuMemGetHandleForAddressRange(void *out, CUdeviceptr at, size_t size, CUmemRangeHandleType type, unsigned long long flags)
{
    NEEDS_CONTEXT();
    FAILS("cuMemGetHandleForAddressRange");
    struct block *block = block_of(at);
    if (!block || !host_of(at, size) || type != 1 || flags || size % 4096 || at % 4096) return CUDA_ERROR_INVALID_VALUE;
    if (getenv("EMULATED_CUDA_NO_DMA_BUF")) return CUDA_ERROR_NOT_SUPPORTED;
    *(int *)out = make_dma_buf(block, at, size);
    return *(int *)out < 0 ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;
}

CUresult cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target, CUflushGPUDirectRDMAWritesScope scope)
{
    NEEDS_CONTEXT();
    FAILS("cuFlushGPUDirectRDMAWrites");
    if (target != 0 || scope != 100) return CUDA_ERROR_INVALID_VALUE;
    flushes++;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *out, unsigned int flags)
{
    NEEDS_CONTEXT();
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) { (void)stream; NEEDS_CONTEXT(); FAILS("cuStreamSynchronize"); return CUDA_SUCCESS; }

CUresult cuStreamDestroy(CUstream stream) { NEEDS_CONTEXT(); free(stream); return CUDA_SUCCESS; }

CUresult cuEventCreate(CUevent *out, unsigned int flags)
{
    NEEDS_CONTEXT();
    if (flags != 2) return CUDA_ERROR_INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) { (void)stream; NEEDS_CONTEXT(); event->held = holds; return CUDA_SUCCESS; }

CUresult cuEventQuery(CUevent event)
{
    NEEDS_CONTEXT();
    FAILS("cuEventQuery");
    return event->held > released ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event)
{
    NEEDS_CONTEXT();
    while (event->held > released) usleep(100);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) { NEEDS_CONTEXT(); free(event); return CUDA_SUCCESS; }
