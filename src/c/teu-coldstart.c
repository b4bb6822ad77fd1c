// SPDX-License-Identifier: Apache-2.0
// A program of ours, in Python, that starts in half of Python's time.
//
// `python3 -IS` needs 6 ms before the first line of ours runs; 3.5 of them go to what a program that lives for
// milliseconds never uses: where its library may be, codecs, importlib, sys.stdin and its kin, zip files.
// Here the interpreter of the distribution (libpython) is brought up to its core and no further, and runs the
// program's modules from one archive of byte code (see teu.coldstart). The rest of the start is made up for when
// something turns out to need it. Nothing of the program is in this file.
//
// Where anything is not as expected (another Python, no libpython, no archive or one of another version), the
// program is started as any script is: PYTHON -IS SCRIPT ARGUMENTS. That is slower, and the same.
//
// No header of Python's is used, so that one build serves the Pythons of all Debian releases: what it says of
// PyConfig is in `layouts` below, and is checked against what PyConfig_InitIsolatedConfig writes there.
//
// -DPROGRAM="teu-runc" -DMULTIARCH="x86_64-linux-gnu", and -DINTERRUPTED=130 for a program that people call: SIGINT ends it
// with that status (until Python's start is completed, then it is a KeyboardInterrupt), and SIGPIPE as every filter.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PYTHON "/usr/bin/python3"
#ifndef FOLDER
#define FOLDER "/usr/lib/teu/"
#endif
#define SCRIPT FOLDER PROGRAM

// -- what is used of libpython ------------------------------------------------------------------------

typedef struct _object PyObject;
typedef struct { int type; const char *function, *message; int exit_code; } PyStatus;
typedef struct {
    int config_init, parse_argv, isolated, use_environment, configure_locale, coerce_c_locale, coerce_c_locale_warn,
        utf8_mode, dev_mode, allocator;
} PyPreConfig;  // the same from 3.8 to 3.14
typedef struct { const char *name; PyObject *(*call)(PyObject *, PyObject *); int flags; const char *doc; } PyMethodDef;
#define METH_VARARGS 1
#define METH_NOARGS 4
#define METH_O 8
typedef struct { void *place; PyObject *object; ssize_t rest[8]; } Py_buffer;
typedef struct { void *context, *(*alloc)(void *, size_t); void (*free)(void *, void *, size_t); } PyObjectArenaAllocator;
#define PyBUF_READ 0x100

struct _frozen { const char *name; const char *code; int size, is_package; };  // more may follow

// By minor version, within which they do not change: the number of its byte code, where PyConfig's members are (LP64),
// and the size of struct _frozen.
static const struct layout {
    int minor, magic;
    size_t size, install_signal_handlers, site_import, program_name, init_main;
    size_t frozen;
} layouts[] = {
    {11, 3495, 424, 16, 168, 264, 412, 32},
    {12, 3531, 432, 16, 176, 272, 420, 32},
    {13, 3571, 448, 16, 176, 280, 436, 24},
    {14, 3627, 456, 16, 176, 288, 444, 24},
};
static const struct layout *layout;  // of the Python that is here

#define FUNCTIONS(F)                                                                                                   \
    F(void, PyPreConfig_InitIsolatedConfig, (PyPreConfig *))                                                           \
    F(PyStatus, Py_PreInitialize, (const PyPreConfig *))                                                               \
    F(void, PyObject_SetArenaAllocator, (PyObjectArenaAllocator *))                                                    \
    F(void, PyConfig_InitIsolatedConfig, (void *))                                                                     \
    F(PyStatus, PyConfig_SetString, (void *, wchar_t **, const wchar_t *))                                             \
    F(PyStatus, Py_InitializeFromConfig, (const void *))                                                               \
    F(int, PyGC_Disable, (void))                                                                                       \
    F(PyObject *, PyMarshal_ReadObjectFromString, (const char *, ssize_t))                                             \
    F(PyObject *, PyMemoryView_FromMemory, (char *, ssize_t, int))                                                     \
    F(PyObject *, PyUnicode_DecodeUTF8, (const char *, ssize_t, const char *))                                         \
    F(PyObject *, PyCMethod_New, (PyMethodDef *, PyObject *, PyObject *, void *))                                      \
    F(PyObject *, PyLong_FromLong, (long))                                                                             \
    F(unsigned long long, PyLong_AsUnsignedLongLongMask, (PyObject *))                                                 \
    F(int, PyObject_GetBuffer, (PyObject *, Py_buffer *, int))                                                         \
    F(void, PyBuffer_Release, (Py_buffer *))                                                                           \
    F(ssize_t, PyTuple_Size, (PyObject *))                                                                             \
    F(PyObject *, PyTuple_GetItem, (PyObject *, ssize_t))                                                              \
    F(PyObject *, PyErr_Occurred, (void))                                                                              \
    F(void, PyErr_Clear, (void))                                                                                       \
    F(PyObject *, PyModule_New, (const char *))                                                                        \
    F(int, PyObject_SetAttrString, (PyObject *, const char *, PyObject *))                                             \
    F(PyObject *, PyImport_GetModuleDict, (void))                                                                      \
    F(PyObject *, PyDict_New, (void))                                                                                  \
    F(int, PyDict_SetItemString, (PyObject *, const char *, PyObject *))                                               \
    F(PyObject *, PyDict_GetItemString, (PyObject *, const char *))                                                    \
    F(PyObject *, PyList_New, (ssize_t))                                                                               \
    F(int, PyList_Append, (PyObject *, PyObject *))                                                                    \
    F(int, PySys_SetObject, (const char *, PyObject *))                                                                \
    F(PyObject *, PyEval_GetBuiltins, (void))                                                                          \
    F(PyObject *, PyEval_EvalCode, (PyObject *, PyObject *, PyObject *))                                               \
    F(void, PyErr_SetString, (PyObject *, const char *))                                                               \
    F(void, PyErr_Print, (void))

#define DECLARE(result, name, arguments) static result(*p_##name) arguments;
FUNCTIONS(DECLARE)
static PyObject **p_PyExc_RuntimeError, *p__Py_NoneStruct;
static char **p__PyImport_FrozenBootstrap;

static int load(int minor) {
    char path[128];
    snprintf(path, sizeof path, "/usr/lib/" MULTIARCH "/libpython3.%d.so.1.0", minor);
    // global: extension modules find the interpreter's symbols there
    void *library = dlopen(path, RTLD_LAZY | RTLD_GLOBAL);
    if (!library)
        return -1;
#define FIND(result, name, arguments)                                                                                  \
    if (!(p_##name = (result(*) arguments)dlsym(library, #name)))                                                      \
        return -1;
    FUNCTIONS(FIND)
    p_PyExc_RuntimeError = dlsym(library, "PyExc_RuntimeError");
    p__Py_NoneStruct = dlsym(library, "_Py_NoneStruct");
    p__PyImport_FrozenBootstrap = dlsym(library, "_PyImport_FrozenBootstrap");
    return p_PyExc_RuntimeError && p__Py_NoneStruct && p__PyImport_FrozenBootstrap ? 0 : -1;
}

// -- memory ----------------------------------------------------------------------------------------------
//
// The kernel needs a microsecond for each page that is touched first, and a start touches 400 pages of the heap. One
// huge page (2 MiB) costs 40 in all. So the heap begins at one: malloc's, and in it the first of Python's arenas
// for objects. Where the kernel has none to give, or any step fails, the pages are small ones, and nothing else differs.

#define HUGE_PAGE ((size_t)2 << 20)

static struct { char *place; size_t size; int taken; } first_arena = {.size = (size_t)1 << 20};

// Before malloc is called for the first time.
static void huge_heap(void) {
    uintptr_t end = (uintptr_t)sbrk(0);
    uintptr_t place = (end + 4096 + HUGE_PAGE - 1) & -HUGE_PAGE;
    // malloc writes to the page before, then the huge page can still be asked for: nothing of it has been touched
    if (sbrk(place - 4096 - end) == (void *)-1)
        return;
    mallopt(M_TOP_PAD, HUGE_PAGE + 4096);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    void *volatile first = malloc(1);
    (void)first;
    if (madvise((void *)place, HUGE_PAGE, MADV_HUGEPAGE))
        return;
    mallopt(M_TOP_PAD, 128 << 10);
    first_arena.place = aligned_alloc(4096, first_arena.size);
}

static void *arena_alloc(void *context, size_t size) {
    (void)context;
    if (first_arena.place && !first_arena.taken && size == first_arena.size) {
        first_arena.taken = 1;
        return first_arena.place;
    }
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return place == MAP_FAILED ? NULL : place;
}

static void arena_free(void *context, void *place, size_t size) {
    (void)context;
    if (place == first_arena.place)
        first_arena.taken = 0;
    else
        munmap(place, size);
}

// -- the start -----------------------------------------------------------------------------------------

static void as_script(char **argv) {
    int count = 0;
    while (argv[count])
        count++;
    char **words = calloc(count + 4, sizeof *words);
    if (!words)
        _exit(127);
    words[0] = (char *)PYTHON;
    words[1] = (char *)"-IS";
    words[2] = (char *)SCRIPT;
    if (count > 1)
        memcpy(words + 3, argv + 1, (count - 1) * sizeof *words);
    execv(PYTHON, words);
    perror(PROGRAM ": " PYTHON);
    _exit(127);
}

static const struct layout *layout_of_python(void) {
    char target[32];
    ssize_t length = readlink(PYTHON, target, sizeof target - 1);
    if (length < 0)
        return NULL;
    target[length] = 0;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        char name[32];
        snprintf(name, sizeof name, "python3.%d", layouts[i].minor);
        if (!strcmp(target, name))
            return &layouts[i];
    }
    return NULL;
}

struct header {
    char kind[8];  // "teu-pyc2"
    uint32_t magic;  // of the byte code
    uint32_t importer, index;  // the lengths of what follows; then the modules
};

static char *archive;
static size_t archive_size;

static int open_archive(void) {
    char path[128];
    struct stat status;
    snprintf(path, sizeof path, FOLDER PROGRAM ".cpython-3%d", layout->minor);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int failed = fstat(fd, &status) || (size_t)status.st_size <= sizeof(struct header);
    if (!failed) {
        archive_size = status.st_size;
        archive = mmap(NULL, archive_size, PROT_READ, MAP_PRIVATE, fd, 0);
        failed = archive == MAP_FAILED;
    }
    close(fd);
    if (failed)
        return -1;
    const struct header *header = (void *)archive;
    if (memcmp(header->kind, "teu-pyc2", 8) || header->magic != ((uint32_t)layout->magic | '\r' << 16 | '\n' << 24))
        return -1;
    return (size_t)header->importer + header->index > archive_size - sizeof *header ? -1 : 0;
}

// What Python code sees: the module _coldstart.

static int address_of(PyObject *object, long *address) {
    Py_buffer buffer;
    if (p_PyObject_GetBuffer(object, &buffer, 0))
        return -1;
    *address = (long)buffer.place;
    p_PyBuffer_Release(&buffer);
    return 0;
}

// address(buffer) -> int
static PyObject *call_address(PyObject *self, PyObject *object) {
    (void)self;
    long address;
    return address_of(object, &address) ? NULL : p_PyLong_FromLong(address);
}

// syscall(number, ...) -> result, or -errno: integers, None (NULL), and what has a buffer (its address)
static PyObject *call_syscall(PyObject *self, PyObject *arguments) {
    (void)self;
    long words[7] = {0};
    ssize_t count = p_PyTuple_Size(arguments);
    if (count < 1 || count > 7) {
        p_PyErr_SetString(*p_PyExc_RuntimeError, "syscall takes a number and up to six arguments");
        return NULL;
    }
    for (ssize_t i = 0; i < count; i++) {
        PyObject *argument = p_PyTuple_GetItem(arguments, i);
        if (argument == p__Py_NoneStruct)
            continue;
        words[i] = (long)p_PyLong_AsUnsignedLongLongMask(argument);
        if (words[i] == -1 && p_PyErr_Occurred()) {
            p_PyErr_Clear();
            if (address_of(argument, &words[i]))
                return NULL;
        }
    }
    long result = syscall(words[0], words[1], words[2], words[3], words[4], words[5], words[6]);
    return p_PyLong_FromLong(result == -1 ? -errno : result);
}

static _Alignas(16) char config[1024];  // a PyConfig
#define AT(member) (*(int *)(config + layout->member))

#ifdef INTERRUPTED
static void interrupted(int number) {
    (void)number;
    _exit(INTERRUPTED);
}

// SIGINT is ours, or nobody's again; as with Python's own start, what the caller has ignored stays so.
static void on_interrupt(void (*before)(int), void (*after)(int)) {
    struct sigaction found;
    if (!sigaction(SIGINT, NULL, &found) && found.sa_handler == before)
        signal(SIGINT, after);
}
#endif

// complete(): the rest of Python's start. A second call, now with init_main, goes on where the first had ended.
static PyObject *call_complete(PyObject *self, PyObject *arguments) {
    (void)self, (void)arguments;
    AT(init_main) = 1;
#ifdef INTERRUPTED
    on_interrupt(interrupted, SIG_DFL);
#endif
    PyStatus status = p_Py_InitializeFromConfig(config);
#ifdef INTERRUPTED
    signal(SIGPIPE, SIG_DFL);
#endif
    if (status.type) {
        p_PyErr_SetString(*p_PyExc_RuntimeError, status.message ? status.message : "Python could not be started");
        return NULL;
    }
    return p_PyList_New(0);
}

// importlib() -> the code under the name _frozen_importlib is Python's own again
static char *frozen_bootstrap;

static PyObject *call_importlib(PyObject *self, PyObject *arguments) {
    (void)self, (void)arguments;
    *p__PyImport_FrozenBootstrap = frozen_bootstrap;
    return p_PyList_New(0);
}

// Have Python's core take the archive's importer for importlib.
static int replace_importlib(size_t entry) {
    static const char *const names[] = {"_frozen_importlib", "_frozen_importlib_external", "zipimport"};
    static _Alignas(16) char table[256];
    frozen_bootstrap = *p__PyImport_FrozenBootstrap;
    for (size_t i = 0; i < 3; i++) {
        // Is it the table that `layouts` says?
        const struct _frozen *frozen = (void *)(frozen_bootstrap + i * entry);
        if (!frozen->name || strcmp(frozen->name, names[i]))
            return -1;
    }
    if (((struct _frozen *)(frozen_bootstrap + 3 * entry))->name)
        return -1;
    memcpy(table + entry, frozen_bootstrap + entry, 3 * entry);
    *(struct _frozen *)table =
        (struct _frozen){names[0], archive + sizeof(struct header), ((struct header *)archive)->importer, 0};
    *p__PyImport_FrozenBootstrap = table;
    return 0;
}

static int initialize(void) {
    PyPreConfig early;
    p_PyPreConfig_InitIsolatedConfig(&early);
    early.utf8_mode = 1;
    early.configure_locale = 0;
    if (p_Py_PreInitialize(&early).type)
        return -1;
    p_PyObject_SetArenaAllocator(&(PyObjectArenaAllocator){NULL, arena_alloc, arena_free});

    p_PyConfig_InitIsolatedConfig(config);
    // Is it the structure that `layouts` says?
    if (*(int *)config != 3 || AT(site_import) != 1 || AT(init_main) != 1 || AT(install_signal_handlers) || *(void **)(config + layout->program_name) ||
        layout->size > sizeof config)
        return -1;
    for (size_t i = layout->size; i < sizeof config; i++)
        if (config[i])
            return -1;
    AT(install_signal_handlers) = 1;  // with the rest of the start
    AT(site_import) = 0;
    AT(init_main) = 0;
    if (p_PyConfig_SetString(config, (wchar_t **)(config + layout->program_name), L"" PYTHON).type)
        return -1;
    return replace_importlib(layout->frozen) || p_Py_InitializeFromConfig(config).type ? -1 : 0;
}

// A descriptor 0, 1 or 2 that the caller has closed becomes /dev/null: else it would be the next file that is opened.
static void open_what_is_closed(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
}

int main(int argc, char **argv) {
    if (fcntl(0, F_GETFD) < 0 || fcntl(1, F_GETFD) < 0 || fcntl(2, F_GETFD) < 0)
        open_what_is_closed();
    huge_heap();
    layout = layout_of_python();
    if (!layout || open_archive() || load(layout->minor))
        as_script(argv);
    if (initialize())
        as_script(argv);

    const struct header *header = (void *)archive;
    // From here on Python runs, and errors are Python's.
#ifdef INTERRUPTED
    signal(SIGPIPE, SIG_DFL);
    on_interrupt(SIG_DFL, interrupted);
#else
    signal(SIGPIPE, SIG_IGN);
#endif
    signal(SIGXFSZ, SIG_IGN);
    p_PyGC_Disable();  // it lives for milliseconds, and its child's memory stays shared the longer the less is touched
    static PyMethodDef methods[] = {
        {"syscall", call_syscall, METH_VARARGS, NULL},
        {"address", call_address, METH_O, NULL},
        {"complete", call_complete, METH_NOARGS, NULL},
        {"importlib", call_importlib, METH_NOARGS, NULL},
    };
    PyObject *module = p_PyModule_New("_coldstart");
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        p_PyObject_SetAttrString(module, methods[i].name, p_PyCMethod_New(&methods[i], NULL, NULL, NULL));
    p_PyDict_SetItemString(p_PyImport_GetModuleDict(), "_coldstart", module);
    PyObject *globals = p_PyDict_New();
    PyObject *words = p_PyList_New(0);
    for (int i = 0; i < argc; i++)
        p_PyList_Append(words, p_PyUnicode_DecodeUTF8(argv[i], strlen(argv[i]), "surrogateescape"));
    p_PySys_SetObject("argv", words);
    PyObject *index = p_PyMarshal_ReadObjectFromString(archive + sizeof *header + header->importer, header->index);
    PyObject *boot = index ? p_PyDict_GetItemString(index, "boot") : NULL;
    if (boot) {
        size_t start = sizeof *header + header->importer + header->index;
        p_PyDict_SetItemString(globals, "__builtins__", p_PyEval_GetBuiltins());
        p_PyObject_SetAttrString(module, "index", index);
        p_PyObject_SetAttrString(
            module, "code", p_PyMemoryView_FromMemory(archive + start, archive_size - start, PyBUF_READ));
        p_PyEval_EvalCode(boot, globals, globals);
    }
    p_PyErr_Print();
    return 1;
}
