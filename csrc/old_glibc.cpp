// For wheels: a libstdc++ linked into the module may ask glibc whether there is one thread only, which glibc before
// 2.32 cannot answer. Saying no is always right, and lets the wheel load on systems older than its build machine.
extern "C" {
extern __attribute__((visibility("hidden"))) const char __libc_single_threaded;
const char __libc_single_threaded = 0;
}
