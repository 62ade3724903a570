from save_deploy.cli import main

main()
