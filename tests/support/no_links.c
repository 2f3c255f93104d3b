/* Preloaded, this makes every file system one without hard links.

   NO_RENAMEAT2: if set, without rename-without-replacing as well
   DIE_BEFORE: if set, kills the process where it renames a file to a path that contains it */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void perhaps_die(const char *to) {
    const char *path = getenv("DIE_BEFORE");
    if (path && strstr(to, path)) raise(SIGKILL);
}

int link(const char *from, const char *to) {
    errno = EPERM;
    return -1;
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    errno = EOPNOTSUPP;
    return -1;
}

int rename(const char *from, const char *to) {
    perhaps_die(to);
    return syscall(SYS_renameat2, -100, from, -100, to, 0);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    if (getenv("NO_RENAMEAT2")) {
        errno = EINVAL;
        return -1;
    }
    perhaps_die(to);
    return syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}
