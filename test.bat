@echo off
rem Runs the tests; installs first where needed. Arguments go to pytest: test.bat tests\core -k lock
setlocal
cd /d "%~dp0"
call install.bat --if-needed
if errorlevel 1 exit /b 1
rem the models of the tests are so small that several processes are faster than several threads
if not defined OMP_NUM_THREADS set "OMP_NUM_THREADS=1"
env\Scripts\python.exe -m pytest -n auto --maxprocesses 4 --dist worksteal %*
exit /b %errorlevel%
