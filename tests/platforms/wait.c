/* Runs a program, for Windows, and ends with its exit code:

   wait PROGRAM ARGUMENT...

   Where Wine runs a program with several threads, its own process often ends with 0 whatever the
   exit code was. Asked by another program, it answers right. */
#include <stdio.h>
#include <string.h>
#include <windows.h>

int main(void) {
    /* What follows the first word, which has no blanks: quoted as it was. */
    wchar_t *rest = GetCommandLineW();
    wchar_t end = *rest == L'"' ? L'"' : L' ';
    rest = wcschr(rest + 1, end);
    if (rest == NULL) return 2;
    rest += end == L'"';
    while (*rest == L' ') rest++;
    STARTUPINFOW start = {.cb = sizeof start};
    PROCESS_INFORMATION made;
    DWORD code = 1;
    if (!CreateProcessW(NULL, rest, NULL, NULL, TRUE, 0, NULL, NULL, &start, &made)) {
        fprintf(stderr, "wait: cannot run it: %lu\n", GetLastError());
        return 2;
    }
    WaitForSingleObject(made.hProcess, INFINITE);
    GetExitCodeProcess(made.hProcess, &code);
    return code;
}
